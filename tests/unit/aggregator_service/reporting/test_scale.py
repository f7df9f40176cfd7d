"""Axes hold their values, ticks are round, numbers are readable."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_service.reporting.scale import (
    Axis,
    format_bytes,
    format_number,
    format_percent,
    format_seconds,
)

values = st.lists(st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-9), max_size=20)
positive = st.lists(st.floats(1e-9, 1e9), max_size=20)


@given(values, st.booleans())
def test_a_linear_axis_holds_every_value_and_has_few_ticks(values, zero):
    axis = Axis.over(values, 300.0, 10.0, zero=zero)
    slack = 1e-6 * 290
    assert all(10.0 - slack <= axis(v) <= 300.0 + slack for v in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(ticks)
    if zero:
        assert axis.low <= 0 <= axis.high


@given(positive)
def test_a_logarithmic_axis_holds_every_value(values):
    axis = Axis.over(values, 0.0, 100.0, log=True)
    assert all(-1e-6 <= axis(v) <= 100.0 + 1e-6 for v in values)
    assert 2 <= len(axis.ticks()) <= 7


def test_what_a_logarithm_cannot_show_lies_at_its_lower_end():
    axis = Axis.over([0.0, 0.01, 1.0], 0.0, 100.0, log=True)
    assert axis(0.0) == 0.0


def test_values_that_are_missing_do_not_matter():
    assert Axis.over([None, math.nan, 1.0, 3.0], 0, 1) == Axis.over([1.0, 3.0], 0, 1)


def test_ticks_are_round_numbers():
    assert Axis.over([0.03, 0.97], 0, 1, zero=True).ticks() == [0, 0.5, 1.0]
    assert Axis.over([0.0, 0.11], 0, 1, zero=True).ticks() == [0, 0.05, 0.1, 0.15]
    assert Axis.over([612.0, 698.0], 0, 1).ticks() == [600, 650, 700]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234, "1234"),
        (0.12345, "0.123"),
        (12.0, "12"),
        (100.0, "100"),
        (1.5e-7, "1.5·10⁻⁷"),
        (2.5e8, "2.5·10⁸"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_numbers(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50.0 %"), (0.0123, "1.2 %"), (0.00123, "0.12 %"), (1e-5, "0.001 %"), (0, "0 %")],
)
def test_percentages(value, text):
    assert format_percent(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_bytes_and_seconds():
    assert [format_bytes(v) for v in (12, 1500, 2e6, 3.25e9)] == [
        "12 B",
        "1.5 kB",
        "2 MB",
        "3.25 GB",
    ]
    assert [format_seconds(v) for v in (3.14, 42, 90, 3600, math.nan)] == [
        "3.1 s",
        "42 s",
        "1 min 30 s",
        "1 h 0 min",
        "–",
    ]
