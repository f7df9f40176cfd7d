"""Bound gaps: the bounds hold over the Hellinger ball and are reached, and what is made of them."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import normal, weights
from support.reference import EPS
from support.views import facts_view

from aggregator_service.aggregation.weighting.bound_gap import BoundGap, Direction
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.errors import FedLoraError, Reason

EXAMPLES = [10, 20, 30]
MEANS, VARIANCES = [0.2, 0.5, 0.7], [0.1, 0.05, 0.2]


def gap(mean, variance, radius, bound=1.0):
    """g of one worker, from the weights beside a worker with all variance there can be at E = M/2.

    That one's gap is known: with cos t = 1 - rho^2 its bounds are M (1 +- sin 2t) / 2, or 0 and M.
    """
    angle = 2 * math.asin(radius / 2**0.5)
    known = bound * (math.sin(2 * angle) if angle < math.pi / 4 else 1)
    rule = BoundGap(radius=radius, score_bound=bound, direction=Direction.PROPORTIONAL)
    seen = facts_view([1, 1], score_mean=[mean, bound / 2], score_variance=[variance, bound**2 / 4])
    one, other = rule.weigh(seen).values_U.tolist()
    return known * one / other


def weigh(means=MEANS, variances=VARIANCES, examples=EXAMPLES, **options):
    seen = facts_view(examples, score_mean=means, score_variance=variances)
    return BoundGap(**options).weigh(seen).values_U


def data():
    return NumExamples().weigh(facts_view(EXAMPLES)).values_U


def formula(mean, variance, radius, bound):
    """upper - lower as printed by Weber et al., inside its range."""
    kappa = radius**2 * (2 - radius**2)
    c = (radius**2 * (1 - radius**2) ** 2 * (2 - radius**2)) ** 0.5
    room = bound - mean
    upper = mean + 2 * c * variance**0.5 + kappa * (room - variance / room)
    lower = mean - 2 * c * variance**0.5 - kappa * (mean - variance / mean)
    return upper - lower


def test_numbers_worked_by_hand():
    # rho^2 = 1/5: c = 4/5, s = 3/5. E = 1/2, V = 1/16, M = 1: to either side
    # 2 * 12/25 * 1/4 + 9/25 * (1/2 - 1/8) = 0.24 + 0.135, so g = 0.75; V = 0 gives 0.36.
    radius = 0.2**0.5
    assert gap(0.5, 1 / 16, radius) == pytest.approx(0.75, rel=1e-13)
    assert gap(0.5, 0.0, radius) == pytest.approx(0.36, rel=1e-13)
    found = weigh([0.5, 0.5], [1 / 16, 0.0], [1, 1], radius=radius)
    torch.testing.assert_close(found, weights(0.36, 0.75) / 1.11, rtol=100 * EPS, atol=0)


@pytest.mark.parametrize("radius", [1e-6, 0.05, 0.2])
@pytest.mark.parametrize("bound", [1.0, 9.0])
def test_gaps_are_those_of_the_printed_bounds(radius, bound):
    for mean, share in [(0.3, 0.2), (0.5, 0.0), (0.6, 0.5)]:
        e, v = mean * bound, share * mean * (1 - mean) * bound**2
        # The printed form subtracts numbers near E.
        expected = formula(e, v, radius, bound)
        found = gap(e, v, radius, bound)
        assert found == pytest.approx(expected, rel=1e-12, abs=20 * EPS * bound)


@pytest.mark.parametrize("radius", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_a_score_of_two_values_reaches_both_bounds(radius):
    # P(s = M) = p: within Hellinger distance rho, P' = sin^2(arcsin sqrt(p) +- arccos(1 - rho^2)).
    angle = 2 * math.asin(radius / 2**0.5)
    for p in (0.1, 0.5, 0.8):
        middle = math.asin(p**0.5)
        most = min(middle + angle, math.pi / 2)
        least = max(middle - angle, 0.0)
        expected = 4.0 * (math.sin(most) ** 2 - math.sin(least) ** 2)
        assert gap(4.0 * p, 16.0 * p * (1 - p), radius, 4.0) == pytest.approx(expected, rel=1e-9)


def test_no_shifted_distribution_leaves_the_bounds():
    for seed in range(50):
        scores = normal(seed, 6).abs().clamp(max=2)
        p, other = (normal(seed + k, 6).square() + 1e-3 for k in (100, 200))
        p, other = p / p.sum(), other / other.sum()
        radius = float((1 - (p * other).sqrt().sum()).clamp(min=0) ** 0.5)
        mean = float((p * scores).sum())
        variance = float((p * (scores - mean).square()).sum())
        shifted = float((other * scores).sum())
        assert abs(shifted - mean) <= gap(mean, variance, radius, 2.0) * (1 + 1e-12)


def test_a_gap_never_exceeds_the_range_of_the_score():
    for radius in (0.3, 0.7, 0.99):
        assert gap(0.4, 0.2, radius) <= 1 + 1e-12
    assert gap(0.4, 0.2, 1.0) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("direction", list(Direction))
def test_radius_0_gives_the_data_weights_bit_for_bit(direction):
    assert torch.equal(weigh(radius=0.0, direction=direction), data())


@pytest.mark.parametrize("direction", list(Direction))
def test_equal_scores_give_the_data_weights_bit_for_bit(direction):
    assert torch.equal(weigh([0.3] * 3, [0.1] * 3, direction=direction), data())


def test_the_directions_are_each_others_inverse():
    inverse = weigh(direction=Direction.INVERSE) / data()
    proportional = weigh(direction=Direction.PROPORTIONAL) / data()
    product = inverse * proportional
    torch.testing.assert_close(product, product[0].expand(3), rtol=100 * EPS, atol=0)
    # More variance at one mean makes a wider gap.
    wide, narrow = weigh([0.5, 0.5], [0.2, 0.1], [1, 1]).tolist()
    assert wide < narrow


def test_scores_that_no_worker_can_have_are_brought_back():
    torch.testing.assert_close(
        weigh([0.5, 0.5, 0.5], [-1.0, 7.0, 0.1]), weigh([0.5, 0.5, 0.5], [0.0, 0.25, 0.1])
    )
    torch.testing.assert_close(weigh([7.0, -1.0, 0.5]), weigh([1.0, 0.0, 0.5]))


def test_scores_at_the_ends_of_the_range_have_a_gap():
    # V = 0 and E = 0: no room below, s^2 M above.
    radius = 0.2**0.5
    for end in (0.0, 1.0):
        assert gap(end, 0.0, radius) == pytest.approx(0.36, rel=1e-13)


def test_scores_that_are_not_numbers_give_the_data_weights():
    assert torch.equal(weigh([float("nan"), 0.5, 0.5]), data())


def test_updates_without_the_metrics_are_named():
    with pytest.raises(FedLoraError, match="bound_gap needs the metric score_variance") as caught:
        BoundGap().weigh(facts_view(EXAMPLES, score_mean=MEANS))
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"radius": -0.1}, "got -0.1 and 1.0"),
        ({"radius": 1.1}, "got 1.1 and 1.0"),
        ({"score_bound": 0.0}, "got 0.1 and 0.0"),
        ({"score_bound": float("inf")}, "got 0.1 and inf"),
    ],
)
def test_bad_options_are_refused(options, got):
    with pytest.raises(FedLoraError, match=got) as caught:
        BoundGap(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
