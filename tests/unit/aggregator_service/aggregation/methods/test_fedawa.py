"""FedAWA: FedIT, with learnt weights."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, weights
from support.recipes import combine
from support.reference import EPS, mean_product
from support.views import geometry_view

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedawa import FedAWA
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.weighting.fedawa import FedAWA as AdaptiveWeights
from aggregator_service.aggregation.weighting.fedawa import FirstWeights
from fedlora.errors import FedLoraError, Reason

COHORT = drifted(3)


def seen(state=None):
    return geometry_view([f.delta_weight() for f in COHORT], examples=[1, 1, 2], state=state)


def test_it_is_fedit_under_the_rule_fedawa_bit_for_bit_in_every_round():
    own = compose(FedAWA(learning_rate=0.5, first_weights=FirstWeights.DATA))
    rule = AdaptiveWeights(learning_rate=0.5, first_weights=FirstWeights.DATA)
    other, state = compose(FedIT(), weighting=rule), {}
    for _ in range(3):
        decided = own.weighting.weigh(seen(state))
        assert torch.equal(decided.values_U, other.weighting.weigh(seen(state)).values_U)
        found, expected = (combine(recipe, COHORT, decided.values_U) for recipe in (own, other))
        assert torch.equal(found.factors.a_RK, expected.factors.a_RK)
        assert torch.equal(found.factors.b_DR, expected.factors.b_DR)
        state = decided.state


def test_the_first_mean_is_the_dense_one_with_the_softmax_of_the_data_fractions():
    recipe = compose(FedAWA())
    found = combine(recipe, COHORT, recipe.weighting.weigh(seen()).values_U).factors
    expected = mean_product(COHORT, weights(0.25, 0.25, 0.5).exp())
    torch.testing.assert_close(found.delta_weight(), expected, rtol=0, atol=1000 * EPS)


def test_clients_that_are_all_the_same_are_what_is_published():
    recipe = compose(FedAWA(learning_rate=1.0))
    products = [COHORT[0].delta_weight()] * 3
    decided = recipe.weighting.weigh(geometry_view(products, examples=[1, 5, 2]))
    later = recipe.weighting.weigh(geometry_view(products, state=decided.state))
    found = combine(recipe, [COHORT[0]] * 3, later.values_U).factors
    torch.testing.assert_close(found.a_RK, COHORT[0].a_RK, rtol=4 * EPS, atol=0)
    torch.testing.assert_close(found.b_DR, COHORT[0].b_DR, rtol=4 * EPS, atol=0)


def test_a_bad_rate_is_refused_when_the_method_is_made():
    with pytest.raises(FedLoraError, match=r"finite learning_rate >= 0, got -1\.0") as caught:
        FedAWA(learning_rate=-1.0)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
