"""LoRA-A2: means over senders, one factor at a time."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.base import GlobalModule
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.lora_a2 import LoRAA2
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import Selection, WorkerFeature

W3 = weights(1, 2, 3)
FIRST = start()


def chosen(masks, *, round):
    """Updates as the server completes them: what was not chosen is as it was given."""
    members, extras = [], []
    for u, mask in enumerate(masks):
        kept = torch.tensor(mask).double()
        a, b = FIRST.a_RK, FIRST.b_DR
        if round % 2:
            b = torch.where(kept > 0, normal(40 + u, 24, 4), b)
        else:
            a = torch.where(kept[:, None] > 0, normal(50 + u, 4, 17), a)
        members.append(LoraFactors(a, b))
        extras.append({Part.SELECTED: kept})
    return members, {"extras": extras, "start": GlobalModule(factors=FIRST), "round": round}


MASKS = [(1, 0, 1, 0), (1, 1, 0, 0), (0, 1, 1, 0)]


def test_one_number_worked_by_hand():
    # Weights 1 : 3, B begins at 2. The first sends 10, the second nothing: its 2 does not count.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(one, 10 * one), LoraFactors(one, 2 * one)]
    extras = [{Part.SELECTED: torch.tensor([m]).double()} for m in (1, 0)]
    found = combine(LoRAA2(), members, weights(1, 3), extras=extras)
    assert float(found.factors.b_DR) == 10
    assert found.measurements["unsent_components"] == 0.0


@pytest.mark.parametrize("round", [1, 2])
def test_each_component_is_the_mean_of_those_who_sent_it(round):
    members, context = chosen(MASKS, round=round)
    result = combine(LoRAA2(), members, W3, **context)
    pick = (lambda f: f.b_DR.T) if round % 2 else (lambda f: f.a_RK)
    found = pick(result.factors)
    for j in range(3):
        senders = [u for u in range(3) if MASKS[u][j]]
        total = sum(W3[u] for u in senders)
        mean = sum(W3[u] * pick(members[u])[j] for u in senders) / total
        torch.testing.assert_close(found[j], mean)
    # Nobody sent the last one: as it was, to the bit, like the frozen factor.
    assert torch.equal(found[3], pick(FIRST)[3])
    assert result.measurements["unsent_components"] == 1.0
    frozen = (lambda f: f.a_RK) if round % 2 else (lambda f: f.b_DR)
    assert torch.equal(frozen(result.factors), frozen(FIRST))


@pytest.mark.parametrize("round", [1, 2])
def test_where_all_send_everything_it_is_exact(round):
    members, context = chosen([(1, 1, 1, 1)] * 3, round=round)
    found = combine(LoRAA2(), members, W3, **context).factors
    assert relative_error(found.delta_weight(), ideal(members, W3)) < 100 * EPS


def test_it_moves_a_component_further_than_the_mean_where_some_do_not_send_it():
    members, context = chosen(MASKS, round=1)
    found = combine(LoRAA2(), members, W3, **context).factors
    moved = (found.b_DR - FIRST.b_DR)[:, 0]
    in_the_mean = sum(x * (f.b_DR - FIRST.b_DR)[:, 0] for x, f in zip(W3 / 6, members, strict=True))
    torch.testing.assert_close(moved, in_the_mean * 6 / 3)


def test_what_a_run_is_told():
    recipe = compose(LoRAA2(upload_budget=0.25))
    plans = recipe.plans()
    assert [p.trained for p in plans] == [(Part.B,), (Part.A,)]
    for plan in plans:
        assert plan.published == plan.trained
        assert plan.selection is Selection.REST_UNCHANGED
        assert plan.settings == {"upload_budget": 0.25}
        assert plan.features == {WorkerFeature.PARTIAL_TRAINING, WorkerFeature.COMPONENT_SELECTION}
    assert recipe.properties.linear


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(FedLoraError, match="upload_budget in") as caught:
        LoRAA2(upload_budget=budget)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_adapters_trained_in_both_factors_and_mixed_ranks_are_refused():
    with pytest.raises(FedLoraError, match="lora_a2 needs one lora_A for the whole cohort"):
        combine(LoRAA2(), drifted(3), W3)
    with pytest.raises(FedLoraError, match=r"lora_a2 needs one rank .* \[2, 4\]"):
        combine(LoRAA2(), unrelated([2, 4]), weights(1, 1))
