"""Bound weights: FedIT, with the weights of the bound gaps."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, weights
from support.recipes import combine
from support.reference import EPS, mean_product
from support.views import facts_view

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.bound_weights import BoundWeights
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.weighting.bound_gap import BoundGap, Direction
from fedlora.errors import FedLoraError, Reason

SEEN = facts_view([10, 20, 30], score_mean=[0.5, 0.5, 1.0], score_variance=[0.0625, 0.0, 0.25])


@pytest.mark.parametrize("direction", list(Direction))
def test_it_is_fedit_under_the_rule_bound_gap_bit_for_bit(direction):
    options = {"radius": 0.3, "score_bound": 4.0, "direction": direction}
    own = compose(BoundWeights(**options))
    other = compose(FedIT(), weighting=BoundGap(**options))
    assert own.weighting == other.weighting
    found, expected = (
        combine(recipe, drifted(3), recipe.weighting.weigh(SEEN).values_U)
        for recipe in (own, other)
    )
    assert torch.equal(found.factors.a_RK, expected.factors.a_RK)
    assert torch.equal(found.factors.b_DR, expected.factors.b_DR)


def test_the_mean_is_the_dense_one_with_gaps_worked_by_hand():
    # rho^2 = 1/5, M = 1: gaps 0.75 and 0.36 (test_bound_gap.py), and 0.36 where E = 1.
    cohort, recipe = drifted(3), compose(BoundWeights(radius=0.2**0.5))
    found = combine(recipe, cohort, recipe.weighting.weigh(SEEN).values_U).factors
    expected = mean_product(cohort, weights(10 / 0.75, 20 / 0.36, 30 / 0.36))
    torch.testing.assert_close(found.delta_weight(), expected, rtol=0, atol=1000 * EPS)


def test_every_round_asks_for_the_scores_and_says_where_to_clip_them():
    (plan,) = compose(BoundWeights(score_bound=9.0)).plans()
    assert plan.required_metrics == ("score_mean", "score_variance")
    assert plan.settings == {"score_bound": 9.0}


def test_a_bad_radius_is_refused_when_the_method_is_made():
    with pytest.raises(FedLoraError, match="expected 0 <= radius <= 1") as caught:
        BoundWeights(radius=2.0)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
