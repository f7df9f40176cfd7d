"""The figures of a report: what of the rounds is drawn, and how it is named."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator_service.reporting.scale import (
    finite,
    format_bytes,
    format_number,
    format_percent,
    format_seconds,
)
from aggregator_service.reporting.svg import (
    Format,
    RangeRow,
    Series,
    heat_map,
    line_chart,
    range_chart,
    stacked_bars,
)
from fedlora.runs.pooling import pooled_metric
from fedlora.runs.report import CertificateEntry, RoundReport
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

__all__ = ["Score", "bytes_chart", "certificate_chart", "gap_chart", "layer_chart", "layer_map"]
__all__ += ["experience_chart", "score_chart", "score_of", "spectrum_chart", "time_chart"]

# More rows than this do not help anybody; the worst are kept.
_MOST_LAYERS = 60

# As many columns as a map has room for, with a gap between two.
_MOST_COLUMNS = 100

_NUM_STYLES = 5
"""colours of the page's style sheet"""


@dataclass(frozen=True, slots=True)
class Score:
    """The score a run is judged by."""

    metric: str
    """as the workers report it: accuracy, token_accuracy or loss"""
    name: str
    number: Format


_SCORES = (
    Score("accuracy", "Accuracy", format_percent),
    Score("token_accuracy", "Token accuracy", format_percent),
    Score("loss", "Loss", format_number),
)


def score_of(rounds: Sequence[RoundReport]) -> Score | None:
    """The first score that any round has; None where nothing was evaluated."""
    for score in _SCORES:
        names = {f"{group}_{score.metric}" for group in ("test", "held_out", "local")}
        if any(names & r.metrics.keys() for r in rounds):
            return score
    return None


def score_chart(rounds: Sequence[RoundReport], score: Score) -> str:
    """Scores per round: shared test set, and own data with the spread over workers."""
    spread_global = [_spread(_published(r), score.metric) for r in rounds]
    spread_local = [_spread(_own(r), score.metric) for r in rounds]
    return line_chart(
        [
            Series(
                name="own held-out data, own adapter",
                style="c3",
                values=_pooled(rounds, f"local_{score.metric}"),
                band=spread_local,
            ),
            Series(
                name="own held-out data, published adapter",
                style="c2",
                values=_pooled(rounds, f"held_out_{score.metric}"),
                band=spread_global,
            ),
            Series(
                name="own held-out data, published adapter made personal",
                style="c4",
                values=_pooled(rounds, f"personal_{score.metric}"),
            ),
            Series(
                name="shared test set, published adapter",
                style="c1",
                values=_pooled(rounds, f"test_{score.metric}"),
            ),
        ],
        _labels(rounds),
        title=f"{score.name} by round",
        x_title="round",
        number=score.number,
    )


def experience_chart(rounds: Sequence[RoundReport], score: Score) -> str:
    """Scores of the published adapter by experience of a continual run; empty for other runs."""
    group = "test" if any(f"test_{score.metric}" in r.metrics for r in rounds) else "held_out"
    pattern = re.compile(rf"{group}_experience_(\d+)_{score.metric}")
    numbers = {int(m[1]) for r in rounds for name in r.metrics if (m := pattern.fullmatch(name))}
    if not numbers:
        return ""
    return line_chart(
        [
            Series(
                name=f"experience {number}",
                style=f"c{(number - 1) % _NUM_STYLES + 1}",
                dashed=number > _NUM_STYLES,
                values=_pooled(rounds, f"{group}_experience_{number}_{score.metric}"),
            )
            for number in sorted(numbers)
        ],
        _labels(rounds),
        title=f"{score.name} by experience",
        x_title="round",
        number=score.number,
    )


def gap_chart(rounds: Sequence[RoundReport]) -> str:
    """How much better the workers' own adapters do on their own data."""
    values = _pooled(rounds, "local_global_gap")
    series = [Series(name="own adapter minus published adapter", style="c3", values=values)]
    return stacked_bars(
        series,
        _labels(rounds),
        title="Local–global gap by round",
        x_title="round",
        number=format_percent,
    )


def certificate_chart(rounds: Sequence[RoundReport], *, vs_change: bool) -> str:
    """Errors of aggregation per round.

    Args:
        rounds: completed rounds; those without a certificate leave a gap.
        vs_change: relative to what the round changed rather than to the whole adapter.
    """
    suffix = "_vs_change" if vs_change else ""
    columns = {
        name: [
            getattr(r.certificate.overall, f"{name}{suffix}") if r.certificate else None
            for r in rounds
        ]
        for name in ("factor_mean_error", "relative_error", "lower_bound")
    }
    positive = [v for v in finite(v for c in columns.values() for v in c) if v > 0]
    return line_chart(
        [
            Series(name="averaging A and B", style="c4", values=columns["factor_mean_error"]),
            Series(name="published", style="c1", values=columns["relative_error"]),
            Series(name="least possible", style="c5", values=columns["lower_bound"], dashed=True),
        ],
        _labels(rounds),
        title="Error over what the round changed" if vs_change else "Error over the whole adapter",
        x_title="round",
        number=format_percent,
        log=bool(positive) and max(positive) > 30 * min(positive),
        zero=True,
    )


def layer_chart(report: RoundReport) -> str:
    """The last certificate layer by layer."""
    entries = report.certificate.modules if report.certificate else ()
    entries = tuple(sorted(entries, key=lambda e: -_rank_of(e.relative_error_vs_change)))
    kept = {e.module for e in entries[:_MOST_LAYERS]}
    rows = [
        RangeRow(
            label=short_module(e.module),
            marks=(
                # Drawn in this order, so that the published one is on top where marks coincide.
                ("averaging A and B", "c4", e.factor_mean_error_vs_change),
                ("least possible", "c5", e.lower_bound_vs_change),
                ("published", "c1", e.relative_error_vs_change),
            ),
        )
        for e in sorted(entries, key=lambda e: _natural(e.module))
        if e.module in kept and len(finite(_marks(e))) == 3
    ]
    return range_chart(
        rows,
        title=f"Error of each layer over its change in round {report.round}",
        number=format_percent,
    )


def layer_map(rounds: Sequence[RoundReport]) -> str:
    """Error of every layer in every round; of many rounds the worst of some in each column."""
    span = math.ceil(len(rounds) / _MOST_COLUMNS)
    columns = [_worst_by_layer(rounds[i : i + span]) for i in range(0, len(rounds), span)]
    modules = sorted(set[str]().union(*columns), key=_natural)
    return heat_map(
        [[column.get(m) for column in columns] for m in modules],
        [short_module(m) for m in modules],
        _labels(rounds[::span]),
        title="Error of each layer over its change, by round",
        x_title="round" if span == 1 else f"worst of {span} rounds from round",
        number=format_percent,
    )


def _worst_by_layer(rounds: Sequence[RoundReport]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for report in rounds:
        for e in report.certificate.modules if report.certificate else ():
            if math.isfinite(error := e.relative_error_vs_change):
                worst[e.module] = max(error, worst.get(e.module, 0.0))
    return worst


def spectrum_chart(report: RoundReport) -> str:
    """Singular values of the ideal mean, each layer's over its largest."""
    entries = report.certificate.modules if report.certificate else ()
    # A layer in which nobody learnt anything has no shape.
    spectra = [e.spectrum for e in entries if e.spectrum and e.spectrum[0] > 0]
    shares = [[s / spectrum[0] for s in spectrum] for spectrum in spectra]
    count = min((len(s) for s in shares), default=0)
    by_number = [sorted(s[i] for s in shares) for i in range(count)]
    return line_chart(
        [
            Series(
                name="middle layer, and all of them",
                style="c1",
                values=[column[len(column) // 2] for column in by_number],
                band=[(column[0], column[-1]) for column in by_number],
            )
        ],
        [str(i + 1) for i in range(count)],
        title=f"Singular values of the ideal mean in round {report.round}",
        x_title="component",
        number=format_percent,
        zero=True,
    )


def bytes_chart(rounds: Sequence[RoundReport]) -> str:
    """Traffic per round, both ways."""
    return stacked_bars(
        [
            Series(name="up: updates", style="c1", values=[float(r.bytes_up) for r in rounds]),
            Series(name="down: adapters", style="c2", values=[float(r.bytes_down) for r in rounds]),
        ],
        _labels(rounds),
        title="Bytes by round",
        x_title="round",
        number=lambda v: format_bytes(v or 0.0),
    )


def time_chart(rounds: Sequence[RoundReport]) -> str:
    """Seconds per round, phase by phase."""
    phases = ("training", "aggregating", "evaluating")
    return stacked_bars(
        [
            Series(name=phase, style=style, values=[r.phase_seconds.get(phase) for r in rounds])
            for phase, style in zip(phases, ("c1", "c4", "c2"), strict=True)
        ],
        _labels(rounds),
        title="Seconds by round",
        x_title="round",
        number=lambda v: format_seconds(v or 0.0),
    )


def short_module(path: str) -> str:
    """A module's path without the words that all of them share."""
    words = [w for w in path.split(".") if w not in _COMMON_WORDS]
    return ".".join(words) or path


_COMMON_WORDS = {"base_model", "model", "bert", "roberta", "encoder", "layers", "layer", "self"}
_COMMON_WORDS |= {"transformer", "h", "decoder"}


def _natural(text: str) -> list[tuple[int, int | str]]:
    return [
        (0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part
    ]


def _labels(rounds: Sequence[RoundReport]) -> list[str]:
    return [str(r.round) for r in rounds]


def _pooled(rounds: Sequence[RoundReport], metric: str) -> list[float | None]:
    return [r.metrics.get(metric) for r in rounds]


def _own(report: RoundReport) -> list[list[Evaluation]]:
    """Each worker's scores of its own adapter."""
    local = EvaluationScope.LOCAL
    return [[e for e in u.evaluations if e.scope is local] for u in report.updates]


def _published(report: RoundReport) -> list[list[Evaluation]]:
    """Each worker's scores of the published one."""
    published = EvaluationScope.GLOBAL
    return [[e for e in w.evaluations if e.scope is published] for w in report.evaluations]


def _spread(by_worker: Sequence[Sequence[Evaluation]], metric: str) -> tuple[float, float] | None:
    """The lowest and the highest of the workers' scores on their own data."""
    values = finite(
        pooled_metric((e for e in evaluations if e.split is EvaluationSplit.HELD_OUT), metric)
        for evaluations in by_worker
    )
    return (min(values), max(values)) if len(values) > 1 else None


def _marks(entry: CertificateEntry) -> tuple[float, float, float]:
    return (
        entry.lower_bound_vs_change,
        entry.relative_error_vs_change,
        entry.factor_mean_error_vs_change,
    )


def _rank_of(value: float) -> float:
    return value if finite([value]) else -1.0
