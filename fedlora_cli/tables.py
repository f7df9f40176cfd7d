"""Tables of runs and rounds for the terminal, and their figures as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.table import Table

from fedlora.runs.report import RoundReport, Run

__all__ = ["round_cells", "round_line", "rounds_table", "runs_table"]

_SCORES = ("accuracy", "token_accuracy", "loss")

_GROUPS = {
    "test": "on the shared test set",
    "held-out": "of the published adapter on the workers' own held-out data",
    "personal": "of that made personal there",
    "local": "of their own adapters there",
}
"""columns of scores, and what each is a score of"""

_CERTIFICATE = ("error", "A,B", "bound")
_COLUMNS = ("round", *_GROUPS, "gap", *_CERTIFICATE, "up MB", "down", "s")


def rounds_table(reports: Iterable[RoundReport], *, title: str = "", legend: bool = True) -> Table:
    """Rounds with scores, certificate, traffic and time; what the columns mean below."""
    reports = tuple(reports)
    table = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 1)
    )
    score = _score(reports)
    # A column of which few runs have anything; the others have a place of their own.
    without = () if any(f"personal_{score}" in r.metrics for r in reports) else ("personal",)
    for name in _COLUMNS:
        if name not in without:
            style = "cyan" if name in _CERTIFICATE else ""
            table.add_column(name, justify="right", header_style="bold", style=style)
    for report in reports:
        cells = zip(_COLUMNS, round_cells(report, score), strict=True)
        table.add_row(*(cell for name, cell in cells if name not in without))
    if reports and legend:
        groups = [name for name in _GROUPS if name not in without]
        what = score.replace("_", " ") if score else "score"
        table.caption = (
            f"{', '.join(groups)}: {what} {', '.join(_GROUPS[name] for name in groups)} · error: "
            "share of the round's change lost in aggregation, beside that of averaging A and B and "
            "the least possible at this rank"
        )
        table.caption_justify = "left"
    return table


def round_cells(report: RoundReport, score: str = "") -> list[str]:
    """The figures of one round, as in the columns of `rounds_table`."""
    score = score or _score([report])
    percent = score != "loss"
    scores = [report.metrics.get(f"{g.replace('-', '_')}_{score}") for g in _GROUPS]
    overall = report.certificate.overall if report.certificate else None
    errors = [
        getattr(overall, f"{name}_vs_change", None)
        for name in ("relative_error", "factor_mean_error", "lower_bound")
    ]
    return [
        str(report.round),
        *(_percent(v) if percent else _number(v) for v in scores),
        _percent(report.metrics.get("local_global_gap")),
        *(_percent(v) for v in errors),
        _megabytes(report.bytes_up),
        _megabytes(report.bytes_down),
        f"{sum(report.phase_seconds.values()):.1f}",
    ]


def round_line(report: RoundReport) -> str:
    """One round on one line, for output that is no terminal."""
    cells = round_cells(report)
    pairs = zip(_COLUMNS, cells, strict=True)
    return "  ".join(f"{name} {value}" for name, value in pairs if value != "–")


def runs_table(runs: Sequence[Run]) -> Table:
    """Runs of a server."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "phase", "round", "workers", "method", "base model", "id"):
        table.add_column(name, header_style="bold", overflow="fold")
    for run in runs:
        ready = sum(w.state.value == "ready" for w in run.workers)
        table.add_row(
            run.spec.name,
            run.phase.value,
            f"{run.round}/{run.spec.rounds.num_rounds}",
            f"{ready}/{len(run.workers)}",
            run.spec.method.name,
            run.spec.adapter.base_model.model_id,
            run.run_id,
        )
    return table


def _score(reports: Iterable[RoundReport]) -> str:
    names = set[str]().union(*(r.metrics for r in reports))
    for score in _SCORES:
        if any(f"{group}_{score}" in names for group in ("test", "held_out", "local")):
            return score
    return ""


def _percent(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    percent = 100 * value
    return f"{percent:.1f}%" if abs(percent) >= 0.1 or percent == 0 else f"{percent:.1g}%"


def _megabytes(num_bytes: int) -> str:
    value = num_bytes / 1e6
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
