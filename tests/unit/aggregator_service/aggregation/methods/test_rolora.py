"""RoLoRA: one factor at a time, B first."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, weights
from support.dense_rounds import trained
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.rolora import RoLoRA
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import WorkerFeature, plan_for

W3 = weights(1, 2, 3)


def test_one_number_worked_by_hand():
    # Round 1 over A = 5: (3 * 2 + 1 * 6) / 4 = 3. Round 2 over B = 3: (3 * 5 + 1 * 9) / 4 = 6.
    one = torch.ones(1, 1, dtype=torch.float64)
    first = [LoraFactors(5 * one, b * one) for b in (2, 6)]
    found = combine(RoLoRA(), first, weights(3, 1), round=1).factors
    assert (float(found.a_RK), float(found.b_DR)) == (5, 3)
    second = [LoraFactors(a * one, 3 * one) for a in (5, 9)]
    found = combine(RoLoRA(), second, weights(3, 1), round=2).factors
    assert (float(found.a_RK), float(found.b_DR)) == (6, 3)


def test_the_first_round_trains_the_factor_that_has_a_gradient_beside_a_b_of_zero():
    version = {Part.A: normal(0, 4, 17), Part.B: torch.zeros(24, 4, dtype=torch.float64)}
    for tensor in version.values():
        tensor.requires_grad_()
    (version[Part.B] @ version[Part.A] - normal(1, 24, 17)).square().sum().backward()
    first, second = (plan.trained for plan in RoLoRA().plans)
    assert [part for part, tensor in version.items() if tensor.grad.any()] == [*first]
    assert {*first, *second} == {*version}


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_every_round_is_exact_and_leaves_the_other_factor_to_the_bit(rank):
    version = LoraFactors(normal(0, rank, 17), torch.zeros(24, rank, dtype=torch.float64))
    for round in range(1, 6):
        (part,) = plan_for(RoLoRA().plans, round).trained
        members = trained(version, 3, seed=round, parts=(part,))
        found = combine(RoLoRA(), members, W3, round=round).factors
        target = ideal(members, W3)
        assert relative_error(found.delta_weight(), target) < 200 * EPS
        before, after = ((f.b_DR if part is Part.A else f.a_RK) for f in (version, found))
        assert torch.equal(before, after)
        version = found
    assert bool(version.b_DR.any())


def test_what_a_run_is_told():
    recipe = compose(RoLoRA())
    for plan in recipe.plans():
        assert plan.trained == plan.published
        assert plan.features == {WorkerFeature.PARTIAL_TRAINING}
    assert recipe.properties.exact
    assert recipe.properties.linear


@pytest.mark.parametrize(("round", "side"), [(1, "A"), (2, "B")])
def test_a_factor_that_should_have_been_frozen_is_named(round, side):
    with pytest.raises(FedLoraError, match=f"one lora_{side} for the whole cohort") as caught:
        combine(RoLoRA(), drifted(3), W3, round=round)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
