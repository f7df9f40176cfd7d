"""The tables of a report: rounds, workers, configuration."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from aggregator_service.reporting.figures import score_of
from aggregator_service.reporting.scale import (
    format_bytes,
    format_number,
    format_percent,
    format_seconds,
)
from aggregator_service.reporting.svg import Format
from fedlora.config import ConfigEntry, toml_value
from fedlora.runs.report import RoundReport, Run, UpdateReport

__all__ = ["round_table", "settings_list", "worker_table"]


def round_table(rounds: Sequence[RoundReport]) -> str:
    """One row per round with its main figures."""
    scores = _score_columns(rounds)
    head = ["round", "updates", *(text for text, _, _ in scores)]
    head += ["gap", "error", "averaging A, B", "least possible", "up", "down", "seconds"]
    rows = []
    for r in rounds:
        late = sum(u.staleness > 0 for u in r.updates)
        came = f"{len(r.updates) - late}/{len(r.cohort)}" + (f" + {late} late" if late else "")
        row = [str(r.round), came]
        row += [number(r.metrics.get(metric)) for _, metric, number in scores]
        row.append(format_percent(r.metrics.get("local_global_gap")))
        overall = r.certificate.overall if r.certificate else None
        row += [
            format_percent(getattr(overall, f"{name}_vs_change", None))
            for name in ("relative_error", "factor_mean_error", "lower_bound")
        ]
        row += [format_bytes(r.bytes_up), format_bytes(r.bytes_down)]
        row.append(format_seconds(sum(r.phase_seconds.values())))
        rows.append(row)
    return _table(head, rows) + (
        '<p class="lead">Errors are shares of what the round changed.</p>'
        if any(r.certificate for r in rounds)
        else ""
    )


def _score_columns(rounds: Sequence[RoundReport]) -> list[tuple[str, str, Format]]:
    """Heading, metric and format of the scores; of the rarer ones those that some round has."""
    score = score_of(rounds)
    if score is None:
        return []
    name, metric = score.name.lower(), score.metric
    always = [
        (f"test {name}", f"test_{metric}", score.number),
        (f"own data {name}, published", f"held_out_{metric}", score.number),
        (f"own data {name}, own adapter", f"local_{metric}", score.number),
    ]
    rarer = [
        ("test macro-F1", "test_macro_f1", format_percent),
        ("test exact match", "test_exact_match", format_percent),
        ("worst tenth of the workers, published", f"held_out_{metric}_worst_tenth", score.number),
        ("forgetting", "test_forgetting", format_percent),
        (f"own data {name}, made personal", f"personal_{metric}", score.number),
    ]
    return always + [column for column in rarer if any(column[1] in r.metrics for r in rounds)]


def worker_table(run: Run, rounds: Sequence[RoundReport]) -> str:
    """One row per worker: where it runs, how much data it has, what it sent."""
    by_worker: dict[str, list[UpdateReport]] = {}
    for r in rounds:
        for u in r.updates:
            by_worker.setdefault(u.worker, []).append(u)
    is_scaled = any(u.share is not None for us in by_worker.values() for u in us)
    most = max((u.num_examples for us in by_worker.values() for u in us), default=1) or 1
    rows = []
    for w in run.workers:
        updates = by_worker.get(w.name, [])
        examples = updates[-1].num_examples if updates else 0
        bar = f'<i class="share" style="width:{5 * examples / most:.2f}rem"></i>'
        weight = sum(u.weight for u in updates) / len(updates) if updates else None
        trained = [u.metrics["train_seconds"] for u in updates if "train_seconds" in u.metrics]
        rows.append(
            [
                escape(w.name),
                escape(w.state.value),
                escape(w.capabilities.device_name or w.capabilities.device_type),
                "–" if w.data_slot is None else str(w.data_slot),
                f"{examples or '–'}{bar}",
                format_percent(weight),
                *([_mean_share(updates)] if is_scaled else []),
                str(w.rank or "–"),
                f"{w.num_updates}/{w.num_tasks}",
                format_seconds(sum(trained) / len(trained)) if trained else "–",
                format_number(updates[-1].metrics.get("train_loss")) if updates else "–",
            ]
        )
    head = ["worker", "state", "device", "data part", "examples", "mean weight"]
    head += [*(["change counted"] if is_scaled else []), "rank"]
    head += ["updates of rounds asked for", "training per round", "last training loss"]
    return _table(head, rows, escaped=True) if rows else '<p class="empty">None has joined.</p>'


def _mean_share(updates: Sequence[UpdateReport]) -> str:
    """How much of a worker's changes counted."""
    shares = [1.0 if u.share is None else u.share for u in updates]
    return format_percent(sum(shares) / len(shares) if shares else None)


def settings_list(groups: Sequence[tuple[str, Sequence[ConfigEntry]]]) -> str:
    """Sections with their keys and values."""
    parts = []
    for section, entries in groups:
        items = "".join(
            f"<dt>{escape(e.key)}</dt><dd>{escape(toml_value(e.value))}</dd>"
            for e in entries
            if e.value is not None
        )
        parts.append(f"<div><h3>[{escape(section)}]</h3><dl>{items}</dl></div>")
    return f'<div class="settings">{"".join(parts)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, escaped: bool = False) -> str:
    cell = (lambda text: text) if escaped else escape
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
