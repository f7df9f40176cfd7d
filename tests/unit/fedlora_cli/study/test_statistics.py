"""Figures that were worked by hand or are in tables of statistics."""

from __future__ import annotations

import math

import pytest

from fedlora_cli.study.statistics import compare, deviation, holm


def test_the_deviation_is_that_of_a_sample():
    assert deviation([2.0, 4.0, 4.0, 6.0]) == pytest.approx(math.sqrt(8 / 3))
    assert deviation([3.0]) == 0.0


def test_a_paired_t_test_as_worked_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, deviation sqrt(2.5), t = 3 / sqrt(0.5) = 4.2426 with four
    # degrees of freedom; the table's t(0.975, 4) is 2.7764.
    of = {0: 11.0, 1: 12.0, 2: 13.0, 3: 14.0, 4: 15.0}
    found = compare(of, dict.fromkeys(of, 10.0))
    assert found is not None
    assert (found.count, found.mean) == (5, 3.0)
    assert found.high - found.mean == pytest.approx(2.7764 * math.sqrt(0.5), rel=1e-4)
    assert found.low + found.high == pytest.approx(2 * found.mean)
    assert found.p == pytest.approx(0.01324, abs=5e-5)


def test_only_common_seeds_are_compared_and_one_is_too_few():
    assert compare({0: 1.0, 1: 2.0}, {1: 1.0, 2: 0.0}) is None
    found = compare({0: 1.0, 1: 2.0, 2: 9.0}, {0: 0.0, 1: 2.0})
    assert found is not None
    assert (found.count, found.mean) == (2, 0.5)


def test_a_pairing_that_explains_everything_is_seen_where_the_spread_hides_it():
    baseline = {0: 0.2, 1: 0.5, 2: 0.8}
    found = compare({s: v + 0.01 + 0.0001 * s for s, v in baseline.items()}, baseline)
    assert found is not None
    assert found.p < 0.001


def test_equal_values_differ_by_nothing():
    found = compare({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("values", [(0.6, 0.7), (0.1, 0.3), (0.7, 0.8, 0.9)])
def test_differences_without_a_spread_are_not_tested(values):
    """Their t is infinite, and p would be 0 of two seeds; some differ in their last bit only."""
    found = compare(
        {seed: value + 0.1 for seed, value in enumerate(values)}, dict(enumerate(values))
    )
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert [math.isnan(v) for v in (found.low, found.high, found.p)] == [True] * 3


def test_a_difference_of_the_last_bit_is_none():
    assert 0.1 + 0.2 != 0.3
    found = compare({0: 0.1 + 0.2, 1: 0.5}, {0: 0.3, 1: 0.5})
    assert found is not None
    assert (found.mean, found.p) == (0.0, 1.0)


def test_holm_as_worked_by_hand():
    # 0.01 * 4; 0.02 * 3; max(0.06, 0.03 * 2); max(0.06, 0.04 * 1)
    adjusted = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
