"""How a run is shown while it goes on: a live table on a terminal, lines or JSON elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlora.runs.report import EventType, RoundReport, RunEvent
from fedlora_cli.console import errors, output, print_json
from fedlora_cli.tables import round_line, rounds_table
from fedlora_cli.view import RunView, notice_of

__all__ = ["Display", "JsonDisplay", "LiveDisplay", "PlainDisplay", "display_for"]

_REFRESHES_PER_SECOND = 5.0

# Rounds shown while the run goes on; the whole table comes at its end.
_LATEST_ROUNDS = 15


class Display(Protocol):
    """Shows a run. Used as a context manager; called from one thread."""

    def __enter__(self) -> Self:
        """Begins to show."""
        ...

    def __exit__(self, *_: object) -> None:
        """Leaves the terminal as it was."""
        ...

    def event(self, event: RunEvent) -> None:
        """Something has happened."""
        ...

    def rounds(self, reports: Sequence[RoundReport]) -> None:
        """All completed rounds, each time one is added or certified."""
        ...

    def notice(self, text: str) -> None:
        """A sentence for people."""
        ...


def display_for(num_rounds: int, *, plain: bool, as_json: bool) -> Display:
    """JSON lines if asked for; a live table on a terminal unless plain; otherwise lines."""
    if as_json:
        return JsonDisplay()
    console = output()
    if plain or not console.is_terminal:
        return PlainDisplay(num_rounds)
    return LiveDisplay(num_rounds, console)


class LiveDisplay:
    """A table of rounds and a line per worker, redrawn in place."""

    def __init__(self, num_rounds: int, console: Console) -> None:
        self._view = RunView(num_rounds)
        self._console = console
        self._started = time.monotonic()
        self._since = time.time()
        # Last: it draws once when it is made.
        self._live = Live(
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            get_renderable=self._render,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Begins to draw."""
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the live part off the terminal again."""
        self._live.__exit__(None, None, None)

    def event(self, event: RunEvent) -> None:
        """Takes an event; notices stay above the live part."""
        self._view.apply(event)
        # Of an earlier part of the run, replayed when it is resumed, only the state is of interest.
        if event.time >= self._since and (text := notice_of(event, self._view)):
            self.notice(text)

    def rounds(self, reports: Sequence[RoundReport]) -> None:
        """Takes the rounds for the table."""
        self._view.set_rounds(reports)

    def notice(self, text: str) -> None:
        """Prints above the live part."""
        # The end of a log, or what another machine gave as its reason: brackets in it are text.
        self._console.print(Text.assemble(("·", "dim"), f" {text}"))

    def _render(self) -> RenderableType:
        view = self._view
        elapsed = time.monotonic() - self._started
        head = Text.assemble(
            (f"round {view.round}/{view.num_rounds}", "bold"),
            f"  {view.phase}  ",
            (f"{elapsed // 60:.0f}:{elapsed % 60:02.0f}", "dim"),
        )
        parts: list[RenderableType] = []
        if view.rounds:
            latest = sorted(view.rounds)[-_LATEST_ROUNDS:]
            table = rounds_table([view.rounds[r] for r in latest], legend=False)
            parts += [table, Text()]
        return Group(*parts, head, self._workers())

    def _workers(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        for name in sorted(self._view.workers):
            worker = self._view.workers[name]
            bar: RenderableType = ""
            if worker.total_steps:
                total, done = worker.total_steps, worker.completed_steps
                bar = ProgressBar(total=total, completed=done, width=24)
            steps = f"{worker.completed_steps}/{worker.total_steps}" if worker.total_steps else ""
            loss = "" if worker.loss is None else f"loss {worker.loss:.3f}"
            table.add_row(worker.name, worker.activity, bar, steps, loss)
        return table


class PlainDisplay:
    """One line per thing that matters; for logs and pipes.

    Args:
        num_rounds: rounds of the run.
        since: events before this moment (seconds since the epoch) were told by an earlier display.
    """

    def __init__(self, num_rounds: int, *, since: float | None = None) -> None:
        self._view = RunView(num_rounds)
        self._since = time.time() if since is None else since
        self._told: dict[int, bool] = {}
        """rounds that were printed, and whether with their certificate"""

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def event(self, event: RunEvent) -> None:
        """Prints what matters."""
        self._view.apply(event)
        if event.time < self._since or event.type is EventType.WORKER_PROGRESS:
            return
        text = notice_of(event, self._view)
        if event.type is EventType.ROUND_STARTED:
            cohort = event.detail.get("cohort")
            size = len(cohort) if isinstance(cohort, list) else 0
            text = f"round {event.round}/{self._view.num_rounds} started with {size} workers"
        elif event.type is EventType.WORKER_READY:
            text = f"{event.worker} is ready"
        if text:
            self.notice(text)

    def rounds(self, reports: Sequence[RoundReport]) -> None:
        """Prints a round once it is complete, and again once it is certified."""
        for report in reports:
            certified = report.certificate is not None
            if report.round not in self._told or (certified and not self._told[report.round]):
                self._told[report.round] = certified
                self.notice(round_line(report))

    def notice(self, text: str) -> None:
        """Prints one line with the time of day."""
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
        sys.stdout.flush()


class JsonDisplay:
    """Every event as one line of JSON, as in events.jsonl; notices go to standard error."""

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def event(self, event: RunEvent) -> None:
        """Prints the event."""
        from fedlora_cli.records import to_record

        print_json(to_record(event))

    def rounds(self, reports: Sequence[RoundReport]) -> None:
        """The events say it."""

    def notice(self, text: str) -> None:
        """Prints to standard error."""
        errors().print(text, markup=False, highlight=False)
