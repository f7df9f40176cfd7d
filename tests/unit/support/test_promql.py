"""The evaluator of our alerts agrees with PromQL where it is worked out by hand, or says no."""

from __future__ import annotations

import pytest
from support.promql import names_in, parse
from support.promql_values import Timeline, evaluate


def timeline() -> Timeline:
    made = Timeline()
    for i, at in enumerate(range(0, 601, 60)):
        made.add(at, "calls_total", 10.0 * i, run="a", code="OK")
        made.add(at, "calls_total", 2.0 * i if i < 6 else 2.0 * (i - 6), run="a", code="NO")
        made.add(at, "size", 4.0, run="a")
        made.add(at, "limit", 3.0, run="a", kind="x")
    return made


def value(expression: str) -> dict[str, float]:
    found = evaluate(parse(expression), timeline(), 600.0)
    assert isinstance(found, dict)
    return {",".join(f"{k}={v}" for k, v in sorted(labels)): x for labels, x in found.items()}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("size + 1 * 2", {"run=a": 6.0}),
        ("(size + 1) * 2", {"run=a": 10.0}),
        ("10 - size - 1", {"run=a": 5.0}),
        ("size > 3", {"run=a": 4.0}),
        ("size > 4", {}),
        ("3 < size", {"run=a": 4.0}),
        ("size > on (run) limit", {"run=a": 4.0}),
        ("size > on (run) group_left (kind) (limit + 0)", {"kind=x,run=a": 4.0}),
        ("size and size < 3", {}),
        ("size unless size < 3", {"run=a": 4.0}),
        ('rate(calls_total{code="OK"}[5m])', {"code=OK,run=a": 40.0 / 300}),
        ('increase(calls_total{code="NO"}[5m])', {"code=NO,run=a": 8.0}),
        ("sum by (run) (increase(calls_total[2m]))", {"run=a": 12.0}),
        ('calls_total{code=~"O.*"}', {"code=OK,run=a": 100.0}),
        ('calls_total{code!="OK"}', {"code=NO,run=a": 8.0}),
        ("time() - size", {"run=a": 596.0}),
        ("avg_over_time(size[5m])", {"run=a": 4.0}),
        ("size > 4 or limit", {"kind=x,run=a": 3.0}),
        ("size or size + 1", {"run=a": 4.0}),
        ('absent(gone{run="a", kind=~"x|y"})', {"run=a": 1.0}),
        ('absent(size{run="a"})', {}),
    ],
)
def test_an_expression_comes_to_what_it_should(expression: str, expected: dict[str, float]):
    assert value(expression) == pytest.approx(expected)


def test_a_counter_that_begins_anew_has_not_fallen():
    # 0 2 4 6 8 10 0 2 4 6 8: ten up, then from nothing to eight.
    assert value('increase(calls_total{code="NO"}[11m])') == {"code=NO,run=a": 18.0}


def test_series_are_forgotten_five_minutes_after_their_last_sample():
    assert evaluate(parse("size"), timeline(), 600.0 + 299.0) != {}
    assert evaluate(parse("size"), timeline(), 600.0 + 301.0) == {}


@pytest.mark.parametrize(
    "expression",
    [
        "size >",
        "(size",
        "size{run=a}",
        'size{run="a"',
        "rate(size[5x])",
        "sum by run (size)",
        "topk(3, size)",
        "size $ 2",
        "size size",
    ],
)
def test_what_is_no_expression_or_not_known_here_is_an_error(expression: str):
    with pytest.raises(ValueError, match=r".+"):
        parse(expression)


@pytest.mark.parametrize(
    "expression",
    ["rate(size)", "1 > 2", "calls_total > on (run) size", "size > on (run) calls_total"],
)
def test_what_prometheus_would_refuse_is_refused(expression: str):
    with pytest.raises(ValueError, match=r".+"):
        evaluate(parse(expression), timeline(), 600.0)


def test_the_metrics_of_an_expression_are_found():
    assert names_in(parse("sum by (a) (rate(x_total[5m])) > 2 * y{b='c'}".replace("'", '"'))) == {
        "x_total",
        "y",
    }
