"""report.html needs nothing but itself, says what was measured, and survives anything measured."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.sample_run import sample_certificate, sample_round, sample_run, sample_spec

from aggregator_service.reporting import report_html
from aggregator_service.reporting.figures import layer_map
from fedlora.adapters.spec import BaseModel
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import BestRound
from fedlora.runs.rounds import FinalVersion

ROUNDS = [sample_round(i) for i in range(1, 7)]


class Page(HTMLParser):
    """Tags, attributes and visible text; refuses tags that are not closed."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self._open):
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_loads_nothing_and_runs_nothing():
    page = Page(report_html(sample_run(), ROUNDS))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href", "onclick", "onload"} & attributes.keys()
    assert "url(" not in report_html(sample_run(), ROUNDS)
    assert "@import" not in report_html(sample_run(), ROUNDS)


def test_every_chart_is_well_formed_and_named():
    html = report_html(sample_run(), ROUNDS)
    charts = [part.split("</svg>")[0] for part in html.split("<svg")[1:]]
    assert len(charts) == 9
    for chart in charts:
        assert ET.fromstring(f"<svg{chart}</svg>").attrib["aria-label"]


def test_the_sentences_carry_the_numbers_of_the_run():
    text = Page(report_html(sample_run(), ROUNDS)).text
    overall = sample_certificate(6).overall
    assert f"lost {100 * overall.relative_error_vs_change:.1f} %" in text
    assert f"would have lost {100 * overall.factor_mean_error_vs_change:.1f} %" in text
    assert f"{100 * ROUNDS[-1].metrics['test_accuracy']:.1f} %" in text
    assert "108 MB" in text
    assert "1 min 30 s" in text


def test_the_first_score_is_said_to_be_of_the_round_that_was_scored_first():
    rounds = [replace(ROUNDS[0], metrics={}), *ROUNDS[1:]]
    first = 100 * ROUNDS[1].metrics["test_accuracy"]
    assert f"{first:.1f} % after round 2" in Page(report_html(sample_run(), rounds)).text


def test_the_worst_served_workers_and_personal_scores_are_shown_where_there_are_such():
    plain = Page(report_html(sample_run(), ROUNDS)).text
    assert "worst tenth" not in plain
    assert "made personal" not in plain
    more = {
        "held_out_accuracy_worst_tenth": 0.4321,
        "held_out_accuracy_lowest": 0.3456,
        "held_out_accuracy_deviation": 0.0789,
        "personal_accuracy": 0.9123,
        "test_macro_f1": 0.7654,
    }
    last = replace(ROUNDS[-1], metrics={**ROUNDS[-1].metrics, **more})
    html = report_html(sample_run(), [*ROUNDS[:-1], last])
    text = Page(html).text
    for figure in ("43.2 %", "34.6 %", "7.9 %", "91.2 %", "76.5 %"):
        assert figure in text
    assert "published adapter made personal, round 6" in html


def test_the_best_round_is_told_and_which_round_the_run_ended_with():
    best = BestRound(round=4, adapter_version=4, metric="test_accuracy", value=0.8642)
    text = Page(report_html(sample_run(best=best), ROUNDS)).text
    assert "86.4 %" in text
    assert "best test accuracy, in round 4" in text
    assert "an ordinary PEFT adapter, that of round 6" in text
    rounds = replace(sample_spec().rounds, best_by="test_accuracy", final_version=FinalVersion.BEST)
    run = sample_run(best=best, spec=sample_spec(rounds=rounds))
    assert "an ordinary PEFT adapter, that of round 4" in Page(report_html(run, ROUNDS)).text


def test_how_much_of_a_workers_changes_counted_is_told_where_that_is_not_all():
    assert "change counted" not in Page(report_html(sample_run(), ROUNDS)).text
    first, *others = ROUNDS[0].updates
    cut = replace(ROUNDS[0], updates=(replace(first, share=0.124), *others))
    text = Page(report_html(sample_run(), [cut, *ROUNDS[1:2]])).text
    assert "change counted" in text
    # One round at an eighth and one in full; the others' in full in both.
    assert "56.2" in text
    assert "100.0" in text


def test_layers_in_which_nobody_learnt_anything_are_no_obstacle():
    learnt, still = (2.0, 1.0), (0.0, 0.0)
    for spectra in ((learnt, still), (still, still)):
        last = ROUNDS[-1]
        modules = tuple(
            replace(entry, spectrum=spectra[i % 2])
            for i, entry in enumerate(last.certificate.modules)
        )
        certificate = replace(last.certificate, modules=modules)
        Page(report_html(sample_run(), [*ROUNDS[:-1], replace(last, certificate=certificate)]))


def test_names_from_workers_are_text_and_never_markup():
    evil = "<script>alert(1)</script>"
    run = sample_run()
    run = replace(run, workers=(replace(run.workers[0], name=evil), *run.workers[1:]), reason=evil)
    spec = sample_spec()
    adapter = replace(spec.adapter, base_model=BaseModel(model_id=evil), labels=(evil, "x"))
    entry = replace(ROUNDS[0].certificate.modules[0], module=evil)
    certificate = replace(ROUNDS[0].certificate, modules=(entry,))
    page = Page(
        report_html(
            replace(run, spec=replace(spec, adapter=adapter)),
            [replace(ROUNDS[0], certificate=certificate)],
        )
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.text


@pytest.mark.parametrize(
    "rounds",
    [
        [],
        [sample_round(1, certified=False)],
        [sample_round(1)],
        [sample_round(1), sample_round(2, certified=False)],
        [sample_round(i, metric="token_accuracy") for i in (1, 2)],
        [replace(sample_round(1), metrics={}, evaluations=(), phase_seconds={}, bytes_down=0)],
        [sample_round(i) for i in range(1, 61)],
    ],
    ids=["none", "uncertified", "one", "last uncertified", "language model", "bare", "many"],
)
def test_whatever_was_measured_makes_a_page(rounds):
    page = Page(report_html(sample_run(RunPhase.WAITING), rounds))
    assert "sample" in page.text


def test_figures_that_are_no_numbers_are_left_out():
    overall = replace(
        sample_certificate(1).overall,
        gap_closed=math.nan,
        relative_error_vs_change=math.nan,
        lower_bound_vs_change=math.inf,
    )
    modules = tuple(
        replace(m, relative_error_vs_change=math.nan) for m in sample_certificate(1).modules
    )
    certificate = replace(sample_certificate(1), overall=overall, modules=modules)
    html = report_html(sample_run(), [replace(sample_round(1), certificate=certificate)])
    assert "nan" not in html.lower().replace("flora_na", "")
    assert "was avoided" not in html


def test_many_layers_are_cut_to_the_worst_in_the_chart_of_layers():
    entry = sample_certificate(1).modules[0]
    modules = tuple(
        replace(entry, module=f"layers.{i}.q_proj", relative_error_vs_change=i / 1000)
        for i in range(300)
    )
    certificate = replace(sample_certificate(1), modules=modules)
    html = report_html(sample_run(), [replace(sample_round(1), certificate=certificate)])
    chart = html.split("<svg")[5]
    assert ">299.q_proj<" in chart
    assert ">10.q_proj<" not in chart


def test_scores_that_differ_in_their_last_bit_only_have_an_axis():
    level = ROUNDS[0].metrics["test_accuracy"]
    metrics = [{"test_accuracy": v} for v in (level, math.nextafter(level, 1), level)]
    for few in (metrics, [{"test_loss": 1e17}], [{"test_loss": 5e-324}]):
        rounds = [replace(r, metrics=m) for r, m in zip(ROUNDS, few, strict=False)]
        assert "<svg" in report_html(sample_run(), rounds)


def test_a_layer_map_of_many_rounds_has_the_worst_of_some_in_each_cell():
    """A cell for each of them would be narrower than the gap between two, and so not drawn."""
    rounds = [replace(ROUNDS[0], round=i) for i in range(1, 2001)]
    entry = ROUNDS[0].certificate.modules[0]
    worst = replace(entry, relative_error_vs_change=0.75)
    certificate = replace(ROUNDS[0].certificate, modules=(worst,))
    rounds[1230] = replace(rounds[1230], certificate=certificate)
    chart = layer_map(rounds)
    cells = re.findall(r'class="cell"[^>]* width="([-0-9.]+)"[^>]*><title>([^<]*)', chart)
    assert len(cells) == 100 * len(ROUNDS[0].certificate.modules)
    assert min(float(width) for width, _ in cells) > 3
    (shown,) = [title for _, title in cells if title.endswith("75.0\N{NO-BREAK SPACE}%")]
    assert "worst of 20 rounds from round 1221:" in shown


def test_a_failed_run_says_why():
    text = Page(report_html(sample_run(RunPhase.FAILED, reason="too few updates"), [])).text
    assert "failed" in text
    assert "too few updates" in text
