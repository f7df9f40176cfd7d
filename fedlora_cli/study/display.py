"""How a study is shown while it runs: bars on a terminal, a line for each cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedlora_cli.console import output
from fedlora_cli.study.cells import Cell
from fedlora_cli.study.results import CellResult

__all__ = ["StudyDisplay"]


class StudyDisplay:
    """Shows cells as they run. Used as a context manager; called from one thread.

    Args:
        cells: that will be run.
        metric: shown of each when it is done.
        plain: lines instead of bars.
    """

    def __init__(self, cells: Sequence[Cell], *, metric: str, plain: bool) -> None:
        self._console = output()
        self._num_cells, self._num_done = len(cells), 0
        self._metric = metric
        self._rows: dict[str, TaskID] = {}
        self._rounds_done = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=plain or not self._console.is_terminal,
            speed_estimate_period=3600.0,
        )
        self._whole = self._progress.add_task("study", total=sum(c.num_rounds for c in cells))

    def __enter__(self) -> Self:
        """Begins to draw."""
        self._progress.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the terminal as it was."""
        self._progress.stop()

    def show(self, running: Sequence[tuple[Cell, int]]) -> None:
        """How many rounds of the cells that run are done."""
        for key in self._rows.keys() - {cell.key for cell, _ in running}:
            self._progress.remove_task(self._rows.pop(key))
        for cell, done in running:
            if cell.key not in self._rows:
                self._rows[cell.key] = self._progress.add_task(cell.label, total=cell.num_rounds)
            self._progress.update(self._rows[cell.key], completed=done)
        under_way = sum(done for _, done in running)
        self._progress.update(self._whole, completed=self._rounds_done + under_way)

    def done(self, cell: Cell, result: CellResult) -> None:
        """A cell has a result."""
        value = result.value(self._metric)
        figure = f"{self._metric} {value:.4g}, " if value is not None else ""
        self._tell(cell, f"{figure}{result.seconds:.0f} s")

    def failed(self, cell: Cell, why: str) -> None:
        """A cell has none and will not have one."""
        self._tell(cell, f"[red]{why}[/]")

    def _tell(self, cell: Cell, what: str) -> None:
        self._num_done += 1
        self._rounds_done += cell.num_rounds
        left = (time.monotonic() - self._began) / self._num_done
        minutes = left * (self._num_cells - self._num_done) / 60
        self._progress.console.print(
            f"[dim]{self._num_done}/{self._num_cells}[/] {escape(cell.label)}: {what}"
            + (f" [dim](about {minutes:.0f} min left)[/]" if minutes >= 1 else ""),
            highlight=False,
        )
