"""AFLoRA: pruned B over one A."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.aflora import AFLoRA
from aggregator_service.aggregation.weighting.rank_aware import RankAware
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import Selection, WorkerFeature

A = normal(3, 4, 17)
W3 = weights(1, 2, 3)


def pruned(masks):
    """Updates as the server completes them: what was pruned is zero."""
    members, extras = [], []
    for u, mask in enumerate(masks):
        kept = torch.tensor(mask).double()
        members.append(LoraFactors(A[: len(mask)], normal(40 + u, 24, len(mask)) * kept))
        extras.append({Part.SELECTED: kept})
    return members, extras


def test_one_number_worked_by_hand():
    # Over A = 5: B = 4 kept by one and pruned by the other, with weights 3 : 1, is 3.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(5 * one, 4 * one), LoraFactors(5 * one, 0 * one)]
    extras = [{Part.SELECTED: torch.tensor([m]).double()} for m in (1, 0)]
    found = combine(AFLoRA(), members, weights(3, 1), extras=extras).factors
    assert float(found.b_DR) == 3


@pytest.mark.parametrize(
    "masks",
    [[(1, 1, 1, 1)] * 3, [(1, 0, 1, 1), (0, 0, 1, 0), (1, 0, 0, 1)], [(1, 0), (1,), (0, 0, 1, 1)]],
)
def test_it_is_the_mean_of_the_pruned_products(masks):
    members, extras = pruned(masks)
    found = combine(AFLoRA(), members, W3, extras=extras).factors
    assert relative_error(found.delta_weight(), ideal(members, W3)) < 100 * EPS
    assert torch.equal(found.a_RK, A)


def test_a_component_that_all_prune_is_exactly_zero():
    members, extras = pruned([(1, 0, 1, 1), (0, 0, 1, 0), (1, 0, 0, 1)])
    found = combine(AFLoRA(), members, W3, extras=extras).factors
    assert not found.b_DR[:, 1].any()
    assert bool(found.b_DR[:, [0, 2, 3]].any(dim=0).all())


def test_what_a_run_is_told():
    recipe = compose(AFLoRA(upload_budget=0.25))
    (plan,) = recipe.plans()
    assert plan.trained == (Part.B,)
    assert plan.refined == (Part.A,)
    assert plan.selection is Selection.REST_ZERO
    assert plan.settings["upload_budget"] == 0.25
    assert plan.features == {WorkerFeature.PARTIAL_TRAINING, WorkerFeature.COMPONENT_SELECTION}
    assert recipe.weighting == RankAware()
    assert compose(AFLoRA(global_steps=0)).plans()[0].refined == ()


@pytest.mark.parametrize(
    "options", [{"upload_budget": 0.0}, {"upload_budget": 1.1}, {"global_steps": -1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(FedLoraError, match="aflora: expected") as caught:
        AFLoRA(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_adapters_with_an_a_of_their_own_are_refused():
    with pytest.raises(FedLoraError, match="aflora needs one lora_A for the whole cohort"):
        combine(AFLoRA(), drifted(3), W3)
