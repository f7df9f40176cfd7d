"""report.html: a run on one page that needs nothing but itself.

Written for somebody who has never seen a certificate: every figure says what it shows, and the
sentences that carry numbers are made from this run's numbers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from html import escape
from itertools import groupby

from aggregator_service.reporting import figures
from aggregator_service.reporting.scale import (
    finite,
    format_bytes,
    format_number,
    format_percent,
    format_seconds,
)
from aggregator_service.reporting.style import STYLE
from aggregator_service.reporting.tables import round_table, settings_list, worker_table
from fedlora import __version__
from fedlora.config import run_entries
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import CertificateEntry, RoundReport, Run
from fedlora.runs.rounds import FinalVersion
from fedlora.runs.score_names import is_cost

__all__ = ["report_html"]


def report_html(run: Run, rounds: Sequence[RoundReport]) -> str:
    """The page of a run.

    Args:
        run: the run as it stands.
        rounds: its completed rounds in order; may be empty.

    Returns:
        A whole HTML document: inline SVG and CSS, no script, no outside resource.
    """
    body = [_header(run, rounds)]
    if rounds:
        body += [_tiles(run, rounds), _scores(rounds), _certificates(run, rounds)]
        body += [_costs(rounds), _section("Rounds", round_table(rounds))]
    else:
        body.append('<p class="note">No round has been completed yet.</p>')
    body += [_section("Workers", worker_table(run, rounds)), _usage(run)]
    body.append(_settings(run))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.spec.name)} – fedlora</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n"
        f"<footer>Run {escape(run.run_id)}, created {_date(run.created_at)}. Written by fedlora "
        f"{escape(__version__)} from events.jsonl and metrics.jsonl, which hold every number of "
        "this page.</footer></main></body></html>\n"
    )


def _header(run: Run, rounds: Sequence[RoundReport]) -> str:
    spec, adapter = run.spec, run.spec.adapter
    task = adapter.task_type.value.replace("_", " ")
    reason = f"<p class='lead'>{escape(run.reason)}</p>" if run.reason else ""
    modules = len(run.layout.modules) if run.layout else 0
    layers = f" on {modules} layers" if modules else ""
    done = f"{len(rounds)} of {spec.rounds.num_rounds} rounds"
    return (
        f"<h1>{escape(spec.name)} <span class='phase {run.phase.value}'>{run.phase.value}</span>"
        f"</h1>{reason}<p class='lead'>{len(run.workers)} workers trained a rank-{adapter.r} "
        f"{escape(adapter.kind.value.upper().replace('LORA', 'LoRA'))} adapter{layers} of "
        f"{escape(adapter.base_model.model_id)} for {escape(task)}: {done}, aggregated by "
        f"<code>{escape(spec.method.name)}</code>.</p>"
    )


def _tiles(run: Run, rounds: Sequence[RoundReport]) -> str:
    tiles = []
    last, score = rounds[-1], figures.score_of(rounds)
    if score:
        for group, text in (
            ("test", "on the shared test set"),
            ("held_out", "on the workers' own held-out data"),
        ):
            name = f"{group}_{score.metric}"
            if name in last.metrics:
                first = next(r for r in rounds if name in r.metrics)
                label = (
                    f"{score.name.lower()} {text}; {score.number(first.metrics[name])} after round "
                    f"{first.round}"
                )
                tiles.append((score.number(last.metrics[name]), label))
        tiles += _fairness(last, score)
    if best := run.best:
        label = f"best {best.metric.replace('_', ' ')}, in round {best.round}"
        number = format_number if is_cost(best.metric) else format_percent
        tiles.append((number(best.value), label))
    if certified := [r for r in rounds if r.certificate]:
        entry = _overall(certified[-1])
        label = (
            f"of round {certified[-1].round}'s change lost in aggregation; averaging A and B "
            f"loses {format_percent(entry.factor_mean_error_vs_change)}"
        )
        tiles.append((format_percent(entry.relative_error_vs_change), label))
    up, down = sum(r.bytes_up for r in rounds), sum(r.bytes_down for r in rounds)
    tiles.append(
        (format_bytes(up + down), f"sent: {format_bytes(up)} up, {format_bytes(down)} down")
    )
    seconds = sum(sum(r.phase_seconds.values()) for r in rounds)
    tiles.append(
        (
            format_seconds(seconds),
            "in one round" if len(rounds) == 1 else f"in {len(rounds)} rounds",
        )
    )
    inside = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{inside}</div>'


def _fairness(last: RoundReport, score: figures.Score) -> list[tuple[str, str]]:
    metrics, prefix = last.metrics, f"held_out_{score.metric}"
    if f"{prefix}_worst_tenth" not in metrics:
        return []
    label = (
        f"{score.name.lower()} with the worst tenth of the workers; lowest "
        f"{score.number(metrics.get(f'{prefix}_lowest'))}, standard deviation over workers "
        f"{score.number(metrics.get(f'{prefix}_deviation'))}"
    )
    return [(score.number(metrics[f"{prefix}_worst_tenth"]), label)]


def _scores(rounds: Sequence[RoundReport]) -> str:
    score = figures.score_of(rounds)
    if score is None:
        return ""
    left = _figure(
        figures.score_chart(rounds, score),
        f"{score.name} by round. Shaded: from the worst to the best worker.",
    )
    right = _figure(
        figures.gap_chart(rounds),
        "Local–global gap: how much better a worker's own adapter, before aggregation, does on the "
        "worker's own held-out data than the published one. Large where workers' data differ much.",
    )
    learned = f'<div class="pair">{left}{right}</div>'
    if by_experience := figures.experience_chart(rounds, score):
        learned += _figure(
            by_experience,
            "What joined when, and what became of it: the published adapter's score on the "
            "examples of each experience. A line that falls once the next begins is forgetting.",
        )
    return _section("What was learned", learned)


def _certificates(run: Run, rounds: Sequence[RoundReport]) -> str:
    certified = [r for r in rounds if r.certificate]
    if not certified:
        return ""
    last = certified[-1]
    charts = "".join(
        _figure(figures.certificate_chart(rounds, vs_change=vs_change), text)
        for vs_change, text in (
            (True, "Error as a share of what the round changed. Lower is better."),
            (False, "The same error as a share of the whole adapter."),
        )
    )
    layers = _figure(
        figures.layer_chart(last),
        f"Every layer in round {last.round}: error as a share of the layer's change. The blue dot "
        "cannot lie left of the grey one; the nearer to it, the better.",
    )
    heat = _figure(
        figures.layer_map(rounds),
        "Where aggregation loses most: error over the layer's change, all layers and rounds.",
    )
    rank = run.spec.adapter.r
    spectrum = _figure(
        figures.spectrum_chart(last),
        f"Singular values of the ideal mean in round {last.round}, each layer's over its largest: "
        f"what stands right of component {rank} no adapter of rank {rank} can hold.",
    )
    return _section(
        "What aggregation lost: the certificate",
        f"<p>{_HOW_TO_READ}</p><p class='note'>{_reading(last, rank)}</p>"
        f'<div class="pair">{charts}</div>{layers}{heat}{spectrum}',
    )


_HOW_TO_READ = (
    "Each worker trains its own low-rank product <i>s·BA</i>. What the server would like to "
    "publish is the weighted mean <i>T</i> of these products; but <i>T</i> has a higher rank than "
    "one adapter can hold, so something is lost. After every round the server measures how much, "
    "from the very files it received and published: the distance of the <b>published</b> product "
    "from <i>T</i>; of the product one gets by <b>averaging A and B</b> separately, as FedAvg "
    "would; and the <b>least possible</b> distance of any adapter of that rank (Eckart–Young), "
    "below which no method can come."
)


def _reading(report: RoundReport, rank: int) -> str:
    e, modules = _overall(report), report.certificate.modules if report.certificate else ()
    text = (
        f"<b>Round {report.round} in words.</b> The published adapter lost "
        f"{format_percent(e.relative_error_vs_change)} of what the workers changed in this round; "
        f"averaging A and B would have lost {format_percent(e.factor_mean_error_vs_change)}, and "
        f"every adapter of rank {rank} loses at least "
        f"{format_percent(e.lower_bound_vs_change)}. Over the whole adapter that is "
        f"{format_percent(e.relative_error)}, {format_percent(e.factor_mean_error)} and "
        f"{format_percent(e.lower_bound)}."
    )
    if e.gap_closed == e.gap_closed:
        text += (
            f" Of the squared error that averaging A and B adds to the least possible one, "
            f"{format_percent(e.gap_closed)} was avoided."
        )
    if e.is_estimate:
        text += (
            " These are estimates, good to about 2 %: the ranks of so many updates add up to far "
            "more than a layer's own."
        )
    ranks = finite(m.effective_rank for m in modules)
    if ranks:
        mean = format_number(sum(ranks) / len(ranks))
        text += f" A layer's ideal mean has an effective rank of {mean} on average."
    return text


def _costs(rounds: Sequence[RoundReport]) -> str:
    traffic = _figure(figures.bytes_chart(rounds), "Payload bytes by round, all workers together.")
    time = _figure(
        figures.time_chart(rounds),
        "Seconds by round. Training lasts until the last update of the round has come; "
        "certificates are measured beside it and delay nothing.",
    )
    return _section("What it cost", f'<div class="pair">{traffic}{time}</div>')


def _usage(run: Run) -> str:
    adapter = run.spec.adapter
    if run.phase is not RunPhase.COMPLETED:
        return ""
    best = run.best if run.spec.rounds.final_version is FinalVersion.BEST else None
    round = best.round if best else run.round
    kind = "SequenceClassification" if adapter.labels else "CausalLM"
    labels = f", num_labels={len(adapter.labels)}" if adapter.labels else ""
    model_id = adapter.base_model.model_id
    base = '"<folder of the base model>"' if ":" in model_id else f'"{model_id}"'
    code = (
        f"from peft import PeftModel\nfrom transformers import AutoModelFor{kind}\n\n"
        f"base = AutoModelFor{kind}.from_pretrained({base}{labels})\n"
        'model = PeftModel.from_pretrained(base, "final")\n'
    )
    return _section(
        "Use the adapter",
        "<p><code>final/</code> beside this page is an ordinary PEFT adapter, that of round "
        f"{round}; <code>rounds/</code> holds that of each round.</p>"
        f"<pre><code>{escape(code)}</code></pre>",
    )


def _settings(run: Run) -> str:
    groups = [
        (section, list(entries))
        for section, entries in groupby(run_entries(run.spec), key=lambda e: e.section)
    ]
    return _section("Configuration", settings_list(groups))


def _overall(report: RoundReport) -> CertificateEntry:
    if report.certificate is None:
        raise AssertionError("only certified rounds are asked for their certificate")
    return report.certificate.overall


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _date(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"
