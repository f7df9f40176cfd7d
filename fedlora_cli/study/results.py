"""What cells came to: a line of JSON each, in a file beside the study that is kept with it.

A line holds figures of every round, so that tables and curves can be made of it without the cell's
folder. Lines are sorted by key: the same results are the same file, in whatever order they came.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from fedlora import __version__
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import RoundReport
from fedlora_cli.file_lock import locked
from fedlora_cli.study.cells import Cell
from fedlora_cli.study.metric_names import CERTIFIED, MEAN

__all__ = ["CellResult", "Results", "result_of"]

_DIGITS = 6
"""significant ones that are kept of a figure"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One cell's figures."""

    key: str
    label: str
    rounds: tuple[Mapping[str, float], ...]
    """by round: pooled scores, the certificate's errors, bytes_up and bytes_down"""
    seconds: float
    """from the start of the process to its end"""
    train_seconds: float
    """of them, the workers' optimiser steps"""
    made_with: str
    """versions and processor"""

    def value(self, metric: str) -> float | None:
        """A figure of the last round, or with "mean_" before its name of all; None for none."""
        if metric in self.rounds[-1] or not metric.startswith(MEAN):
            return self.rounds[-1].get(metric)
        name = metric.removeprefix(MEAN)
        found = [figures[name] for figures in self.rounds if name in figures]
        return fmean(found) if found else None

    def bytes_to(self, metric: str, level: float) -> float | None:
        """Bytes in both directions until the metric is first that high; None if it never is."""
        total = 0.0
        for figures in self.rounds:
            total += figures["bytes_up"] + figures["bytes_down"]
            if figures.get(metric, level - 1) >= level:
                return total
        return None


def result_of(cell: Cell, reports: Sequence[RoundReport], *, seconds: float) -> CellResult:
    """The figures of a cell that has been run."""
    trained = sum(u.metrics.get("train_seconds", 0.0) for r in reports for u in r.updates)
    return CellResult(
        key=cell.key,
        label=cell.label,
        rounds=tuple(_figures(report) for report in reports),
        seconds=round(seconds, 1),
        train_seconds=round(trained, 1),
        made_with=f"fedlora {__version__}, torch {version('torch')}, {platform.machine()}",
    )


def _figures(report: RoundReport) -> dict[str, float]:
    figures = dict(report.metrics)
    if report.certificate is not None:
        overall = report.certificate.overall
        figures |= {name: getattr(overall, name) for name in CERTIFIED}
        figures |= overall.measurements
    figures |= {"bytes_up": float(report.bytes_up), "bytes_down": float(report.bytes_down)}
    # NaN stands where there was nothing to measure, and JSON has none.
    return {k: float(f"{v:.{_DIGITS}g}") for k, v in sorted(figures.items()) if math.isfinite(v)}


class Results:
    """The file of a study's results.

    Args:
        file: made with the first result.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._by_key = _read(file)

    def find(self, cell: Cell) -> CellResult | None:
        """What a cell came to; None before it was run."""
        return self._by_key.get(cell.key)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, no other process runs cells for this file, and all it has is known.

        Each would write the file as it knows it, without the other's cells, and begin in folders
        in which the other's are at work.

        Raises:
            FedLoraError: STATE_LOCKED if another process does.
        """
        with locked(
            self._file.with_name(".lock"),
            taken=f"another `fedlora study` is running cells for {str(self._file)!r}",
            hint="Let it end, or stop it; one command uses all of a machine with --jobs "
            "and --devices",
        ):
            self._by_key = _read(self._file)
            yield

    def add(self, result: CellResult) -> None:
        """Keeps a result; the file is whole at any moment."""
        self._by_key[result.key] = result
        lines = [json.dumps(dataclasses.asdict(r)) for _, r in sorted(self._by_key.items())]
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(self._file)


def _read(file: Path) -> dict[str, CellResult]:
    """The results in a file by their keys; none where there is no file."""
    found: dict[str, CellResult] = {}
    if not file.exists():
        return found
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            result = CellResult(**{**values, "rounds": tuple(values["rounds"])})
        except (ValueError, TypeError, KeyError) as error:
            raise FedLoraError(
                Reason.INVALID_DATA,
                f"{file}, line {number}: no result of a cell ({error})",
                hint="Remove the line: its cell is run again",
            ) from None
        found[result.key] = result
    return found
