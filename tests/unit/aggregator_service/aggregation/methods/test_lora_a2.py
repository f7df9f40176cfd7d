"""LoRA-A2: B and A in turn, each component averaged over its senders."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.lora_a2 import LoRAA2
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import Selection

MASKS = [[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]]
W = weights(1, 2, 5)
ROUNDS = [(1, Part.B), (2, Part.A), (3, Part.B), (4, Part.A)]


def sent(origin, masks, part, seed=0):
    """Completed members that moved and sent some components of one factor."""
    members = []
    for u, mask in enumerate(masks):
        chosen = torch.tensor(mask).double()
        a, b = origin.a_RK, origin.b_DR
        if part is Part.B:
            b = b + chosen * normal(80 + seed + u, *b.shape)
        else:
            a = a + chosen[:, None] * normal(80 + seed + u, *a.shape)
        members.append(LoraFactors(a, b))
    return members


def play(origin, masks, part, round, w=W, **context):
    members = sent(origin, masks, part)
    extras = [{Part.SELECTED: torch.tensor(mask).double()} for mask in masks]
    result = combine(
        LoRAA2(),
        members,
        w,
        extras=extras,
        start=GlobalModule(factors=origin),
        round=round,
        **context,
    )
    return members, result


def test_one_number_worked_by_hand():
    # Both send the first: (1 * 2 + 3 * 6) / 4 = 5. Only the first sends the second: 8, though it
    # has a quarter of the weight. Nobody sends the third: 9, as it was.
    origin = LoraFactors(torch.ones(3, 1).double(), torch.tensor([[1.0, 1.0, 9.0]]).double())
    members = [
        LoraFactors(origin.a_RK, torch.tensor([[2.0, 8.0, 9.0]]).double()),
        LoraFactors(origin.a_RK, torch.tensor([[6.0, 1.0, 9.0]]).double()),
    ]
    masks = [{Part.SELECTED: torch.tensor(m).double()} for m in ([1, 1, 0], [1, 0, 0])]
    begun = GlobalModule(factors=origin)
    result = combine(LoRAA2(), members, weights(1, 3), extras=masks, start=begun)
    assert result.factors.b_DR.tolist() == [[5.0, 8.0, 9.0]]
    assert result.measurements["untouched_components"] == 1


@pytest.mark.parametrize(("round", "part"), ROUNDS)
def test_a_component_is_the_mean_over_its_senders(round, part):
    origin = start()
    members, result = play(origin, MASKS, part, round)
    for j in range(4):
        senders = [u for u, mask in enumerate(MASKS) if mask[j]]
        rows = [f.b_DR[:, j] if part is Part.B else f.a_RK[j] for f in members]
        total = sum(float(W[u]) for u in senders)
        wanted = sum(float(W[u]) / total * rows[u] for u in senders) if senders else rows[0]
        found = result.factors.b_DR[:, j] if part is Part.B else result.factors.a_RK[j]
        torch.testing.assert_close(found, wanted, rtol=50 * EPS, atol=50 * EPS)


@pytest.mark.parametrize(("round", "part"), ROUNDS)
def test_what_nobody_sent_and_the_frozen_factor_stay_bit_for_bit(round, part):
    origin = start()
    _, result = play(origin, MASKS, part, round)
    frozen = Part.A if part is Part.B else Part.B
    held = {Part.A: result.factors.a_RK, Part.B: result.factors.b_DR.T}
    began = {Part.A: origin.a_RK, Part.B: origin.b_DR.T}
    assert torch.equal(held[frozen], began[frozen])
    assert torch.equal(held[part][3], began[part][3])
    assert not torch.equal(held[part][2], began[part][2])


@pytest.mark.parametrize(("round", "part"), ROUNDS[:2])
def test_a_round_in_which_nobody_sent_anything_changes_nothing(round, part):
    origin = start()
    _, result = play(origin, [[0] * 4] * 3, part, round)
    assert torch.equal(result.factors.a_RK, origin.a_RK)
    assert torch.equal(result.factors.b_DR, origin.b_DR)
    assert result.measurements["untouched_components"] == 4


@pytest.mark.parametrize(("round", "part"), ROUNDS[:2])
@pytest.mark.parametrize("shape", [(24, 17, 4), (5, 3, 8)])
def test_it_is_the_mean_of_products_where_everybody_sends_everything(round, part, shape):
    d, k, r = shape
    origin = start(d, k, r)
    members, result = play(origin, [[1] * r] * 3, part, round)
    assert relative_error(result.factors.delta_weight(), ideal(members, W)) < 500 * EPS


@pytest.mark.parametrize(("round", "part"), ROUNDS[:2])
def test_senders_are_not_held_back_by_those_who_did_not_send(round, part):
    # Alone in sending a component, a client moves it all the way; T would move it by its weight.
    origin = start()
    members, result = play(origin, [[1, 1, 1, 1], [0] * 4, [0] * 4], part, round)
    found = result.factors.delta_weight()
    assert relative_error(found, members[0].delta_weight()) < 100 * EPS
    assert relative_error(found, ideal(members, W)) > 0.1


def test_the_first_round_moves_the_model_from_zero_b():
    origin = LoraFactors(start().a_RK, torch.zeros(24, 4, dtype=torch.float64))
    members, result = play(origin, [[1] * 4] * 3, Part.B, 1)
    assert result.factors.b_DR.any()
    assert relative_error(result.factors.delta_weight(), ideal(members, W)) < 100 * EPS


def test_whole_adapters_without_masks_count_as_sent():
    origin = start()
    members = sent(origin, [[1] * 4] * 2, Part.B)
    found = combine(LoRAA2(), members, weights(1, 1)).factors
    assert relative_error(found.delta_weight(), ideal(members, weights(1, 1))) < 100 * EPS


def test_what_a_run_is_told():
    recipe = compose(LoRAA2(upload_budget=0.1))
    first, second = recipe.plans()
    assert first.trained == first.published == (Part.B,)
    assert second.trained == second.published == (Part.A,)
    for plan in (first, second):
        assert plan.selection is Selection.REST_UNCHANGED
        assert plan.settings == {"upload_budget": 0.1}
    assert not recipe.properties.exact
    assert recipe.properties.linear
    assert not recipe.properties.mixed_ranks


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.01, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(FedLoraError, match=f"above 0 and at most 1, got {budget}") as caught:
        LoRAA2(upload_budget=budget)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_a_component_nobody_sent_needs_the_start_of_the_round():
    members = sent(start(), MASKS, Part.B)
    extras = [{Part.SELECTED: torch.tensor(mask).double()} for mask in MASKS]
    with pytest.raises(FedLoraError, match="that nobody sent as it was") as caught:
        combine(LoRAA2(), members, W, extras=extras)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "Name the version" in caught.value.hint


@pytest.mark.parametrize(("round", "frozen"), [(1, "A"), (2, "B")])
def test_members_that_trained_the_frozen_factor_are_refused(round, frozen):
    with pytest.raises(FedLoraError, match=f"lora_a2 needs one lora_{frozen} for") as caught:
        combine(LoRAA2(), drifted(3), weights(1, 1, 1), round=round)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
