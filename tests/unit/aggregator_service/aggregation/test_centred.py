"""Centred coordinates: small errors with full relative accuracy."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.reference import ideal, mean_product

from aggregator_service.aggregation.centred import CentredCohort
from fedlora.adapters.factors import LoraFactors


def centred(cohort, w, reference=None):
    return CentredCohort.of(cohort, w / w.sum(), reference=reference)


@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 4, 3], [1, 1]])
@pytest.mark.parametrize("reference", [None, start(r=4, seed=9)])
def test_norms_are_the_dense_ones(ranks, reference):
    cohort, w = unrelated(ranks), weights(*range(1, len(ranks) + 1))
    target, coordinates = ideal(cohort, w), centred(cohort, w, reference)
    assert coordinates.ideal_norm() == pytest.approx(float(target.norm()), rel=1e-12)
    dense = float((mean_product(cohort, w) - target).norm())
    assert coordinates.factor_mean_error() == pytest.approx(dense, rel=1e-12)
    for rank in (1, 4, 6):
        other = start(r=rank, seed=33)
        dense = float((other.delta_weight() - target).norm())
        assert coordinates.error_of(other) == pytest.approx(dense, rel=1e-12)


def test_two_clients_worked_by_hand():
    # a_u = -+1, b_u = -+2 about the means 2 and 3: T - B~A~ = 2, T = 8
    cohort = [
        LoraFactors(torch.tensor([[a]]), torch.tensor([[b]])) for a, b in [(1.0, 1.0), (3.0, 5.0)]
    ]
    coordinates = centred(cohort, weights(1, 1))
    assert coordinates.factor_mean_error() == 2.0
    assert coordinates.ideal_norm() == 8.0
    # Published 2 * 4.5 = 9
    published = LoraFactors(torch.tensor([[2.0]]), torch.tensor([[4.5]]))
    assert coordinates.error_of(published) == 1.0


@pytest.mark.parametrize("drift", [1e-2, 1e-4, 1e-6])
def test_the_factor_means_error_scales_as_the_square_of_the_drift_down_to_1e_12(drift):
    # Exactly representable: a start of small integers and steps of a power of two.
    step = 2.0 ** round(torch.log2(torch.tensor(drift)).item())
    a0, b0 = (normal(i, *s).mul(4).round() for i, s in enumerate([(4, 17), (24, 4)]))
    moves = [(normal(9 + u, 4, 17).round(), normal(19 + u, 24, 4).round()) for u in range(4)]
    w = weights(1, 1, 1, 1)
    near = [LoraFactors(a0 + step * a, b0 + step * b) for a, b in moves]
    unit = [LoraFactors(a, b) for a, b in moves]
    expected = step**2 * float((mean_product(unit, w) - ideal(unit, w)).norm())
    assert centred(near, w).factor_mean_error() == pytest.approx(expected, rel=1e-12)


def test_a_planted_relative_error_of_1e_8_is_right_to_two_digits():
    cohort, w = drifted(6, drift=1e-3), weights(1, 2, 3, 4, 5, 6)
    target, origin = ideal(cohort, w), start()
    # An exact factorisation of T of rank 24, and then an error of known size in B alone.
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    keep = 17
    planted = normal(8, 24, keep)
    planted *= 1e-8 * float(target.norm()) / float((planted @ vh[:keep]).norm())
    published = LoraFactors(vh[:keep], u[:, :keep] * s[:keep] + planted)
    measured = centred(cohort, w, origin).error_of(published) / float(target.norm())
    assert measured == pytest.approx(1e-8, rel=5e-3)


def test_a_planted_error_of_1e_8_near_the_factor_means_is_right_to_six_digits():
    cohort, w = drifted(4, drift=1e-6), weights(1, 1, 1, 1)
    coordinates = centred(cohort, w, start())
    mean = coordinates.mean
    step = normal(8, 24, 4)
    step *= 1e-8 * coordinates.ideal_norm() / float((step @ mean.a_RK).norm())
    # The factor mean's own error, 1e-12, is four digits below what is planted.
    published = LoraFactors(mean.a_RK, mean.b_DR + step)
    expected = float((step @ mean.a_RK).norm())
    assert coordinates.error_of(published) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scalar", [1.0, -1.0, 1e3])
def test_the_excess_over_the_factor_mean_is_the_dense_one(scalar):
    cohort, w, other = unrelated([4, 4, 4]), weights(1, 2, 3), start(seed=12)
    target = ideal(cohort, w)
    dense = float((other.delta_weight() - target).square().sum())
    dense -= float((mean_product(cohort, w) - target).square().sum())
    scaled = LoraFactors(other.a_RK / scalar, other.b_DR * scalar)
    assert centred(cohort, w).excess_of(scaled) == pytest.approx(dense, rel=1e-11)


@pytest.mark.parametrize("scalar", [1.0, 37.0])
def test_the_excess_has_the_right_sign_where_the_gain_is_far_below_rounding_of_the_norm(scalar):
    cohort, w = drifted(4, drift=1e-5), weights(1, 1, 1, 1)
    coordinates = centred(cohort, w, start())
    mean, lost = coordinates.mean, coordinates.covariance.delta_weight()
    # A step along the best answer for B lowers |BA - T|, here by 1e-10 of |T|.
    step = lost @ torch.linalg.pinv(mean.a_RK)
    for sign in (1.0, -1.0):
        moved = LoraFactors(mean.a_RK / scalar, (mean.b_DR + sign * step) * scalar)
        excess = coordinates.excess_of(moved)
        expected = float((sign * step @ mean.a_RK - lost).square().sum() - lost.square().sum())
        assert excess == pytest.approx(expected, rel=1e-3)
        assert (excess < 0) == (sign > 0)


def test_the_change_is_the_dense_one_for_one_rank():
    cohort, w, origin = drifted(5), weights(1, 2, 3, 4, 5), start()
    dense = float((ideal(cohort, w) - origin.delta_weight()).norm())
    measured = centred(cohort, w, origin).change_from(origin, [4] * 5)
    assert measured == pytest.approx(dense, rel=1e-12)


def test_clients_of_lower_rank_started_from_the_first_components():
    origin, ranks, w = start(r=4), [4, 2, 3], weights(1, 2, 3)
    cohort, starts = [], []
    for u, r in enumerate(ranks):
        first = LoraFactors(origin.a_RK[:r], origin.b_DR[:, :r])
        starts.append(first)
        cohort.append(
            LoraFactors(
                first.a_RK + 0.1 * normal(40 + u, r, 17), first.b_DR + 0.1 * normal(50 + u, 24, r)
            )
        )
    dense = float((ideal(cohort, w) - ideal(starts, w)).norm())
    measured = centred(cohort, w, origin).change_from(origin, ranks)
    assert measured == pytest.approx(dense, rel=1e-12)


def test_no_change_is_exactly_zero():
    origin = start()
    assert centred([origin] * 3, weights(1, 2, 3), origin).change_from(origin, [4] * 3) == 0.0
