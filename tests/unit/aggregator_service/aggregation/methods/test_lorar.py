"""Lorar: FedIT, with the weights of the loss reductions."""

from __future__ import annotations

import torch
from support.builders import drifted, weights
from support.recipes import combine
from support.reference import EPS, mean_product
from support.views import facts_view

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.lorar import Lorar
from aggregator_service.aggregation.weighting.loss_reduction import LossReduction

SEEN = facts_view([10, 20, 30], loss_reduction=[1.0, 3.0, 1.0])


def test_it_is_fedit_under_the_rule_loss_reduction_bit_for_bit():
    cohort = drifted(3)
    own, other = compose(Lorar()), compose(FedIT(), weighting=LossReduction())
    assert own.weighting == other.weighting
    found, expected = (
        combine(recipe, cohort, recipe.weighting.weigh(SEEN).values_U) for recipe in (own, other)
    )
    assert torch.equal(found.factors.a_RK, expected.factors.a_RK)
    assert torch.equal(found.factors.b_DR, expected.factors.b_DR)


def test_the_mean_is_the_dense_one_with_examples_times_reductions():
    # n l = 10, 60, 30; 24 x 17 at rank 20 is beyond full rank.
    cohort = drifted(3, r=20)
    recipe = compose(Lorar())
    found = combine(recipe, cohort, recipe.weighting.weigh(SEEN).values_U).factors
    expected = mean_product(cohort, weights(10, 60, 30))
    torch.testing.assert_close(found.delta_weight(), expected, rtol=0, atol=1000 * EPS)


def test_every_round_asks_for_the_loss_reduction():
    (plan,) = compose(Lorar()).plans()
    assert plan.required_metrics == ("loss_reduction",)
