"""FedLoRA-Optimizer: means of lengths and of directions, and the stages that follow."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.recipes import combine
from support.reference import mean_product

from aggregator_service.aggregation.base import GlobalModule
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedlora_optimizer import (
    FedLoRAOptimizer,
    refine_directions,
)
from aggregator_service.aggregation.polar import Axis, axis_of_a, axis_of_b
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import WorkerFeature

W3 = weights(1, 2, 3)


def dense_mean(matrices, w, dim):
    """The formula, with torch's own norm: mean length times normalised mean direction."""
    share = w / w.sum()
    length = sum(x * m.norm(dim=dim, keepdim=True) for x, m in zip(share, matrices, strict=True))
    direction = sum(
        x * torch.nn.functional.normalize(m, dim=dim) for x, m in zip(share, matrices, strict=True)
    )
    return length * torch.nn.functional.normalize(direction, dim=dim)


def test_one_component_worked_by_hand():
    # A: lengths 2 and 4, directions (1, 0) and (0, 1): 3 (1, 1) / sqrt(2). B: 1 and 5: 3.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [
        LoraFactors(torch.tensor([[2.0, 0.0]]).double(), one),
        LoraFactors(torch.tensor([[0.0, 4.0]]).double(), 5 * one),
    ]
    found = combine(FedLoRAOptimizer(), members, weights(1, 1)).factors
    torch.testing.assert_close(found.a_RK, torch.full((1, 2), 3 / 2**0.5).double())
    assert float(found.b_DR) == pytest.approx(3)


@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("rank", [4, 20])
def test_lengths_and_directions_are_averaged_apart(axis, rank):
    members = drifted(3, r=rank)
    found = combine(FedLoRAOptimizer(axis=axis), members, W3).factors
    a = dense_mean([f.a_RK for f in members], W3, axis_of_a(axis))
    b = dense_mean([f.b_DR for f in members], W3, axis_of_b(axis))
    torch.testing.assert_close(found.a_RK, a)
    torch.testing.assert_close(found.b_DR, b)


def test_it_is_not_the_mean_of_the_factors_and_says_how_far():
    members = unrelated([4] * 3)
    result = combine(FedLoRAOptimizer(), members, W3)
    mean = mean_product(members, W3)
    apart = float((result.factors.delta_weight() - mean).norm() / mean.norm())
    assert result.measurements["distance_from_mean"] == pytest.approx(apart)
    assert apart > 0.1


@pytest.mark.parametrize("axis", list(Axis))
def test_a_single_client_keeps_its_components(axis):
    (client,) = unrelated([4])
    found = combine(FedLoRAOptimizer(axis=axis), [client], weights(2)).factors
    torch.testing.assert_close(found.a_RK, client.a_RK)
    torch.testing.assert_close(found.b_DR, client.b_DR)


def test_where_directions_do_not_agree_the_one_of_the_round_before_is_kept():
    first = start()
    there, back = (LoraFactors(first.a_RK.clone(), first.b_DR) for _ in range(2))
    there.a_RK[1], back.a_RK[1] = 2 * normal(5, 17), -2 * normal(5, 17)
    result = combine(
        FedLoRAOptimizer(), [there, back], weights(1, 1), start=GlobalModule(factors=first)
    )
    before = torch.nn.functional.normalize(first.a_RK[1], dim=0)
    torch.testing.assert_close(torch.nn.functional.normalize(result.factors.a_RK[1], dim=0), before)
    assert float(result.factors.a_RK[1].norm()) == pytest.approx(2 * float(normal(5, 17).norm()))
    assert result.measurements["kept_directions_a"] == 1.0
    assert result.measurements["kept_directions_b"] == 0.0


def test_a_b_of_zero_has_no_direction_and_stays_zero():
    first = start()
    members = [LoraFactors(f.a_RK, torch.zeros_like(f.b_DR)) for f in drifted(3)]
    origin = GlobalModule(factors=LoraFactors(first.a_RK, torch.zeros_like(first.b_DR)))
    result = combine(FedLoRAOptimizer(), members, W3, start=origin)
    assert not result.factors.b_DR.any()
    # Of B nothing can be said: it had no direction to begin with.
    assert "direction_change_b" not in result.measurements
    assert result.measurements["direction_change_a"] > 0


def test_sensitivities_are_those_of_the_definition():
    first, members = start(), drifted(3)
    found = combine(FedLoRAOptimizer(), members, W3, start=GlobalModule(factors=first)).measurements
    share = W3 / 6
    for name, dim, pick in (("a", 1, lambda f: f.a_RK), ("b", 0, lambda f: f.b_DR)):
        length = sum(
            x * (pick(f).norm(dim=dim) - pick(first).norm(dim=dim)).abs().mean()
            for x, f in zip(share, members, strict=True)
        )
        turned = sum(
            x * (1 - torch.cosine_similarity(pick(f), pick(first), dim=dim)).mean()
            for x, f in zip(share, members, strict=True)
        )
        assert found[f"length_change_{name}"] == pytest.approx(float(length))
        assert found[f"direction_change_{name}"] == pytest.approx(float(turned))


@pytest.mark.parametrize("axis", list(Axis))
def test_a_refinement_changes_directions_of_a_and_nothing_else(axis):
    published, other = start(), normal(9, 4, 17)
    method = FedLoRAOptimizer(axis=axis)
    found = method.refined(published, LoraFactors(other, published.b_DR))
    dim = axis_of_a(axis)
    torch.testing.assert_close(found.a_RK.norm(dim=dim), published.a_RK.norm(dim=dim))
    torch.testing.assert_close(
        torch.nn.functional.normalize(found.a_RK, dim=dim),
        torch.nn.functional.normalize(other, dim=dim),
    )
    assert torch.equal(found.b_DR, published.b_DR)


def test_a_refinement_without_a_direction_changes_nothing():
    published = start()
    found = refine_directions(published, torch.zeros(4, 17), Axis.RANK)
    torch.testing.assert_close(found.a_RK, published.a_RK)


def test_what_a_run_is_told():
    (plan,) = compose(FedLoRAOptimizer(axis=Axis.ROW, global_steps=7)).plans()
    assert plan.trained == (Part.A, Part.B)
    assert plan.private == ()
    assert plan.refined == (Part.A,)
    assert plan.features == {WorkerFeature.PERSONAL_STAGE}
    assert plan.settings == {
        "axis": 1.0,
        "global_steps": 7.0,
        "global_learning_rate": 1e-4,
        "personal_epochs": 1.0,
        "personal_learning_rate": 1e-3,
    }


def test_without_its_stages_it_is_the_averaging_alone():
    (plan,) = compose(FedLoRAOptimizer(global_steps=0, personal_epochs=0)).plans()
    assert plan.refined == ()
    assert plan.features == frozenset()


@pytest.mark.parametrize(
    "options",
    [
        {"global_steps": -1},
        {"global_learning_rate": 0.0},
        {"personal_epochs": -0.5},
        {"personal_learning_rate": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(FedLoraError, match="fedlora_optimizer: expected") as caught:
        FedLoRAOptimizer(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_mixed_ranks_are_refused():
    with pytest.raises(FedLoraError, match=r"fedlora_optimizer needs one rank .* \[2, 4\]"):
        combine(FedLoRAOptimizer(), unrelated([2, 4]), weights(1, 1))
