"""Magnitudes and directions: the split, its inverse, and means of both."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, weights
from support.reference import EPS

from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.polar import (
    MIN_NORM,
    Axis,
    Polar,
    decompose,
    mean_polar,
    recompose,
)

AXES = [(axis, side) for axis in Axis for side in Side]
SHAPES = {Side.A: (4, 17), Side.B: (24, 4)}
COUNTS = {
    (Axis.RANK, Side.A): 4,
    (Axis.RANK, Side.B): 4,
    (Axis.ROW, Side.A): 4,
    (Axis.ROW, Side.B): 24,
    (Axis.DORA, Side.A): 17,
    (Axis.DORA, Side.B): 4,
}


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize(("axis", "side"), AXES)
def test_recomposing_what_was_split_gives_it_back(axis, side):
    factor = normal(1, *SHAPES[side])
    polar = decompose(factor, axis.summed(side))
    assert polar.magnitudes_N.shape == (COUNTS[axis, side],)
    lengths = polar.directions.norm(dim=polar.dim)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=30 * EPS, atol=0)
    torch.testing.assert_close(recompose(polar), factor, rtol=4 * EPS, atol=0)


def test_the_codes_that_workers_are_told():
    assert [(axis.value, axis.code) for axis in Axis] == [("rank", 0), ("row", 1), ("dora", 2)]


def test_a_vector_that_is_zero_or_too_short_has_no_direction():
    factor = torch.stack([torch.zeros(3), torch.full((3,), MIN_NORM / 3), torch.full((3,), 1.0)])
    polar = decompose(factor, 1)
    assert polar.has_direction.tolist() == [False, False, True]
    assert not polar.directions[:2].any()
    assert torch.isfinite(polar.directions).all()
    assert float((recompose(polar) - factor.double()).norm()) < MIN_NORM


def test_vectors_just_long_enough_keep_their_direction():
    polar = decompose(row(3.0, 4.0) * MIN_NORM, 1)
    torch.testing.assert_close(polar.directions, row(0.6, 0.8), rtol=8 * EPS, atol=0)


def test_a_mean_worked_by_hand():
    # (3, 0) and (0, 1): the mean length is 2, and the mean direction (1, 1) / sqrt(2).
    members = [decompose(row(3.0, 0.0), 1), decompose(row(0.0, 1.0), 1)]
    found = recompose(mean_polar(members, weights(0.5, 0.5), None))
    torch.testing.assert_close(found, row(2**0.5, 2**0.5), rtol=4 * EPS, atol=0)


def test_directions_that_contradict_each_other_leave_those_before():
    # The mean direction is 0.54 - 0.46 = 0.08 long, then 0.56 - 0.44 = 0.12.
    members = [decompose(row(2.0, 0.0), 1), decompose(row(-4.0, 0.0), 1)]
    before = decompose(row(0.0, 7.0), 1)
    kept = mean_polar(members, weights(0.54, 0.46), before)
    torch.testing.assert_close(recompose(kept), row(0.0, 2.92), rtol=8 * EPS, atol=0)
    followed = mean_polar(members, weights(0.56, 0.44), before)
    torch.testing.assert_close(recompose(followed), row(2.88, 0.0), rtol=8 * EPS, atol=0)


@pytest.mark.parametrize("before", [None, decompose(row(0.0, 0.0), 1)])
def test_without_a_direction_before_the_mean_counts_however_short_it_is(before):
    members = [decompose(row(1.0, 0.0), 1), decompose(row(-1.0, 0.0), 1)]
    found = mean_polar(members, weights(0.51, 0.49), before)
    torch.testing.assert_close(found.directions, row(1.0, 0.0), rtol=8 * EPS, atol=0)
    opposed = mean_polar(members, weights(0.5, 0.5), before)
    assert not opposed.directions.any()


def test_a_member_without_a_direction_counts_in_the_magnitude_only():
    members = [decompose(row(0.0, 0.0), 1), decompose(row(0.0, 5.0), 1)]
    found = mean_polar(members, weights(0.96, 0.04), decompose(row(1.0, 0.0), 1))
    torch.testing.assert_close(recompose(found), row(0.0, 0.2), rtol=8 * EPS, atol=0)


def test_where_nobody_has_a_direction_the_one_before_stays_at_length_zero():
    members = [decompose(row(0.0, 0.0), 1)] * 2
    found = mean_polar(members, weights(0.5, 0.5), decompose(row(0.0, 3.0), 1))
    assert torch.equal(found.directions, row(0.0, 1.0))
    assert not recompose(found).any()


@pytest.mark.parametrize(("axis", "side"), AXES)
def test_means_are_those_of_the_definition(axis, side):
    dim, w = axis.summed(side), weights(0.2, 0.3, 0.5)
    factors = [normal(s, *SHAPES[side]) for s in (1, 2, 3)]
    found = mean_polar([decompose(f, dim) for f in factors], w, None)
    vectors = [f if dim == 1 else f.T for f in factors]
    for n in range(COUNTS[axis, side]):
        lengths = [float(v[n].square().sum()) ** 0.5 for v in vectors]
        mean = sum(x * v[n] / m for x, v, m in zip(w, vectors, lengths, strict=True))
        wanted = mean / mean.square().sum().sqrt()
        direction = found.directions[n] if dim == 1 else found.directions[:, n]
        torch.testing.assert_close(direction, wanted, rtol=0, atol=100 * EPS)
        magnitude = sum(float(x) * m for x, m in zip(w, lengths, strict=True))
        assert float(found.magnitudes_N[n]) == pytest.approx(magnitude, rel=20 * EPS)


def test_on_the_axis_of_components_only_products_of_magnitudes_matter():
    a, b = (decompose(f, Axis.RANK.summed(s)) for s, f in zip(Side, factors(), strict=True))
    c_R = torch.tensor([0.5, 2.0, -3.0, 10.0], dtype=torch.float64)
    other_a = Polar(magnitudes_N=a.magnitudes_N * c_R, directions=a.directions, dim=a.dim)
    other_b = Polar(magnitudes_N=b.magnitudes_N / c_R, directions=b.directions, dim=b.dim)
    wanted, found = recompose(b) @ recompose(a), recompose(other_b) @ recompose(other_a)
    assert float((found - wanted).norm()) < 100 * EPS * float(wanted.norm())


def factors():
    return normal(1, *SHAPES[Side.A]), normal(2, *SHAPES[Side.B])
