"""Axes that hold whatever was measured, and numbers as people read them."""

from __future__ import annotations

import math

import pytest

from aggregator_service.reporting.scale import Axis, format_bytes


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1e6, 1e17, 1e300, -3e20, 1e-300, 5e-324])
def test_values_that_are_the_same_but_for_their_last_bits_have_an_axis(value, zero):
    for other in (value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf)):
        axis = Axis.over([value, other], 200.0, 10.0, zero=zero)
        assert axis.low <= min(value, other) <= max(value, other) <= axis.high
        assert 10.0 <= axis(value) <= 200.0
        assert axis.ticks()[0] < axis.ticks()[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_400, "999 kB"), (999_600, "1 MB"),
        (12e6, "12 MB"), (107.6e6, "108 MB"), (999.7e9, "1 TB"), (5e15, "5000 TB"),
    ],
)  # fmt: skip
def test_bytes_have_three_digits_and_no_exponent(value, text):
    assert format_bytes(value) == text
