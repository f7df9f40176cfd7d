"""AFLoRA: pruned columns of B over one A."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, weights
from support.recipes import combine
from support.reference import EPS, ideal, normalised, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.aflora import AFLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule
from aggregator_service.aggregation.weighting.rank_aware import RankAware
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import Selection, WorkerFeature

A = normal(3, 6, 17)
KEPT = [[1, 1, 0, 0, 0, 1], [1, 0, 1, 0], [0, 1, 1, 0, 0, 1]]


def pruned(kept, a=A):
    """Workers that trained B diag(l) over the first rows of A and kept some of its columns."""
    members = []
    for u, mask in enumerate(kept):
        r = len(mask)
        b = normal(40 + u, 24, r) * normal(60 + u, r) * torch.tensor(mask).double()
        members.append(LoraFactors(a[:r], b))
    return members


def selected(kept):
    return [{Part.SELECTED: torch.tensor(mask).double()} for mask in kept]


def test_one_number_worked_by_hand():
    # One component, kept by the first worker only: (3 * 8 + 1 * 0) / 4 = 6 over A = 5.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(5 * one, 8 * one), LoraFactors(5 * one, 0 * one)]
    found = combine(AFLoRA(), members, weights(3, 1), extras=selected([[1], [0]])).factors
    assert (float(found.a_RK), float(found.b_DR)) == (5, 6)


@pytest.mark.parametrize("kept", [KEPT, KEPT[:1], [[1] * 6, [1] * 6]])
def test_a_common_a_makes_it_exact(kept):
    members, w = pruned(kept), weights(*range(1, len(kept) + 1))
    result = combine(AFLoRA(), members, w, extras=selected(kept))
    assert torch.equal(result.factors.a_RK, A)
    assert relative_error(result.factors.delta_weight(), ideal(members, w)) < 100 * EPS


def test_a_column_is_averaged_with_the_zeros_of_those_who_pruned_it():
    members, w = pruned(KEPT), weights(1, 2, 3)
    found = combine(AFLoRA(), members, w, extras=selected(KEPT)).factors.b_DR
    for j in range(6):
        wanted = torch.zeros(24, dtype=torch.float64)
        for share, member, mask in zip(normalised(w), members, KEPT, strict=True):
            if j < len(mask) and mask[j]:
                wanted += share * member.b_DR[:, j]
        torch.testing.assert_close(found[:, j], wanted, rtol=20 * EPS, atol=20 * EPS)


def test_a_component_that_all_pruned_is_exactly_zero():
    found = combine(AFLoRA(), pruned(KEPT), weights(1, 2, 3), extras=selected(KEPT)).factors
    assert not found.b_DR[:, 3].any()
    assert not found.b_DR[:, 4].any()
    assert found.b_DR[:, :3].any(dim=0).all()


def test_more_components_than_the_layer_has():
    a = normal(4, 30, 17)
    members = pruned([[1] * 30, [1] * 10], a)
    found = combine(AFLoRA(), members, weights(1, 2)).factors.delta_weight()
    assert relative_error(found, ideal(members, weights(1, 2))) < 1000 * EPS


def test_rows_of_a_that_no_member_has_stay():
    begun = GlobalModule(factors=LoraFactors(A, normal(9, 24, 6)))
    members = pruned([[1, 0], [1, 1, 0]])
    found = combine(AFLoRA(), members, weights(1, 1), rank=6, start=begun).factors
    assert torch.equal(found.a_RK, A)
    assert not found.b_DR[:, 3:].any()


def test_what_a_run_is_told():
    recipe = compose(AFLoRA(upload_budget=0.25, refine_steps=9))
    (plan,) = recipe.plans()
    assert plan.trained == plan.published == (Part.B,)
    assert plan.selection is Selection.REST_ZERO
    assert plan.refined == (Part.A,)
    assert plan.settings == {
        "upload_budget": 0.25,
        "refine_steps": 9,
        "refine_learning_rate": 1e-4,
    }
    assert plan.features == {WorkerFeature.PARTIAL_TRAINING, WorkerFeature.COMPONENT_SELECTION}
    assert recipe.weighting == RankAware()
    assert recipe.properties.exact
    assert recipe.properties.linear
    assert recipe.properties.mixed_ranks


def test_without_steps_on_public_data_a_stays():
    (plan,) = AFLoRA(refine_steps=0).plans
    assert plan.refined == ()
    assert plan.settings == {"upload_budget": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upload_budget": 0.0}, "upload_budget above 0 and at most 1, got 0.0"),
        ({"upload_budget": 1.5}, "upload_budget above 0 and at most 1, got 1.5"),
        ({"upload_budget": float("nan")}, "upload_budget above 0 and at most 1, got nan"),
        ({"refine_steps": -1}, "refine_steps >= 0 .* got -1"),
        ({"refine_learning_rate": -1.0}, "refine_learning_rate above 0, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(FedLoraError, match=message) as caught:
        AFLoRA(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_adapters_trained_in_both_factors_are_refused():
    with pytest.raises(FedLoraError, match="aflora needs one lora_A for the whole") as caught:
        combine(AFLoRA(), drifted(3), weights(1, 1, 1))
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
