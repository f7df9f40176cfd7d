"""FedLoRA-Optimizer: components averaged apart, and the stage that turns A."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, mean_product, normalised, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedlora_optimizer import (
    FedLoRAOptimizer,
    GlobalStage,
    Order,
    refine_directions,
)
from aggregator_service.aggregation.module_cohort import GlobalModule
from aggregator_service.aggregation.polar import Axis
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import WorkerFeature

VECTORS = {Axis.RANK: ("rows", "columns"), Axis.ROW: ("rows", "rows"), Axis.DORA: ("columns",) * 2}


def split(factor, kind):
    """Lengths and unit vectors, one vector per row of the result."""
    x = factor.double() if kind == "rows" else factor.double().T
    lengths = x.square().sum(dim=1).sqrt()
    return lengths, x / lengths[:, None]


def joined(lengths, units, kind):
    x = lengths[:, None] * units
    return x if kind == "rows" else x.T


def oracle(members, w, axis):
    """Means of lengths and of directions, by the definition."""
    made = []
    for kind, factors in zip(
        VECTORS[axis], ([f.a_RK for f in members], [f.b_DR for f in members]), strict=True
    ):
        parts = [split(f, kind) for f in factors]
        lengths = sum(x * m for x, (m, _) in zip(w, parts, strict=True))
        mean = sum(x * v for x, (_, v) in zip(w, parts, strict=True))
        made.append(joined(lengths, mean / mean.square().sum(dim=1, keepdim=True).sqrt(), kind))
    return LoraFactors(*made)


@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("shape", [(24, 17, 4), (5, 3, 8)])
def test_it_is_the_dense_definition(axis, shape):
    d, k, r = shape
    members, w = drifted(4, d=d, k=k, r=r), weights(1, 2, 3, 4)
    found = combine(FedLoRAOptimizer(axis=axis), members, w).factors
    wanted = oracle(members, normalised(w), axis)
    torch.testing.assert_close(found.a_RK, wanted.a_RK, rtol=0, atol=500 * EPS)
    torch.testing.assert_close(found.b_DR, wanted.b_DR, rtol=0, atol=500 * EPS)


def test_one_number_worked_by_hand():
    # A: (3, 0) and (0, 1), mean length 2 along (1, 1) / sqrt(2); B: 1 and 5, mean 3.
    # The factor mean is 3 (1.5, 0.5): |3 (sqrt 2 - 1.5, sqrt 2 - 0.5)| / |3 (1.5, 0.5)|.
    rows = ([[3.0, 0.0]], [[0.0, 1.0]])
    members = [
        LoraFactors(torch.tensor(a).double(), torch.tensor([[b]]).double())
        for a, b in zip(rows, (1.0, 5.0), strict=True)
    ]
    result = combine(FedLoRAOptimizer(), members, weights(1, 1))
    root = 2**0.5
    assert result.factors.delta_weight().flatten().tolist() == pytest.approx([3 * root] * 2)
    distance = (((root - 1.5) ** 2 + (root - 0.5) ** 2) / 2.5) ** 0.5
    assert result.measurements["factor_mean_distance"] == pytest.approx(distance, rel=1e-12)


@pytest.mark.parametrize("axis", list(Axis))
def test_one_client_gets_its_own_components(axis):
    (member,) = unrelated([4])
    found = combine(FedLoRAOptimizer(axis=axis), [member], weights(3)).factors
    torch.testing.assert_close(found.a_RK, member.a_RK, rtol=8 * EPS, atol=0)
    torch.testing.assert_close(found.b_DR, member.b_DR, rtol=8 * EPS, atol=0)


def test_clients_that_differ_in_length_alone_give_the_factor_mean():
    origin, w = start(), weights(1, 2)
    members = [LoraFactors(c * origin.a_RK, origin.b_DR / c) for c in (0.5, 3.0)]
    result = combine(FedLoRAOptimizer(), members, w)
    wanted = mean_product(members, w)
    assert relative_error(result.factors.delta_weight(), wanted) < 100 * EPS
    assert result.measurements["factor_mean_distance"] < 100 * EPS


def test_lengths_are_not_shortened_as_they_are_in_the_factor_mean():
    members, w = drifted(5, drift=1.0), weights(1, 1, 1, 1, 1)
    found = combine(FedLoRAOptimizer(), members, w).factors
    lengths = torch.stack([f.a_RK.norm(dim=1) for f in members]).mean(dim=0)
    torch.testing.assert_close(found.a_RK.norm(dim=1), lengths, rtol=50 * EPS, atol=0)
    mean = torch.stack([f.a_RK for f in members]).mean(dim=0)
    assert (mean.norm(dim=1) < 0.95 * lengths).all()


def test_the_measured_distance_is_that_to_the_factor_mean():
    members, w = drifted(4), weights(1, 2, 3, 4)
    result = combine(FedLoRAOptimizer(), members, w)
    wanted = relative_error(result.factors.delta_weight(), mean_product(members, w))
    assert result.measurements["factor_mean_distance"] == pytest.approx(wanted, rel=1e-9)


def test_a_direction_nobody_agrees_on_is_the_one_the_round_began_with():
    origin = start()
    turned = origin.a_RK.clone()
    turned[1] = normal(5, 17)
    opposite = turned.clone()
    opposite[1] *= -1
    members = [LoraFactors(a, origin.b_DR) for a in (turned, opposite)]
    kept = combine(FedLoRAOptimizer(), members, weights(1, 1), start=GlobalModule(factors=origin))
    wanted = origin.a_RK[1] / origin.a_RK[1].norm() * turned[1].norm()
    torch.testing.assert_close(kept.factors.a_RK[1], wanted, rtol=20 * EPS, atol=0)
    torch.testing.assert_close(kept.factors.a_RK[0], origin.a_RK[0], rtol=20 * EPS, atol=0)


@pytest.mark.parametrize("rank", [2, 6])
def test_a_round_may_begin_from_a_version_of_another_rank(rank):
    # As the rule energy publishes it: workers were given it at their own.
    members, began = drifted(3), start(r=rank)
    at_rank = LoraFactors(began.a_RK[:4], began.b_DR[:, :4]).padded(4)
    found, same = (
        combine(FedLoRAOptimizer(), members, weights(1, 1, 1), start=GlobalModule(factors=f))
        for f in (began, at_rank)
    )
    assert torch.equal(found.factors.a_RK, same.factors.a_RK)
    assert torch.equal(found.factors.b_DR, same.factors.b_DR)


def test_a_first_round_from_zero_b_is_finite():
    origin = LoraFactors(start().a_RK, torch.zeros(24, 4, dtype=torch.float64))
    members = [LoraFactors(f.a_RK, f.b_DR - start().b_DR) for f in drifted(3)]
    begun = GlobalModule(factors=origin)
    result = combine(FedLoRAOptimizer(), members, weights(1, 1, 1), start=begun)
    assert torch.isfinite(result.factors.delta_weight()).all()
    assert result.factors.b_DR.any()


def test_zero_components_stay_zero():
    origin = start()
    a, b = origin.a_RK.clone(), origin.b_DR.clone()
    a[2], b[:, 1] = 0, 0
    members = [LoraFactors(a, b), LoraFactors(2 * a, 3 * b)]
    for axis in Axis:
        found = combine(FedLoRAOptimizer(axis=axis), members, weights(1, 1)).factors
        assert not found.a_RK[2].any()
        assert not found.b_DR[:, 1].any()
        assert torch.isfinite(found.delta_weight()).all()


# --- the global stage ----------------------------------------------------------------------


@pytest.mark.parametrize("axis", list(Axis))
def test_a_refinement_changes_directions_of_a_and_nothing_else(axis):
    published, trained = unrelated([4, 4])
    found = FedLoRAOptimizer(axis=axis).refined(published, trained)
    kind = VECTORS[axis][0]
    lengths, units = split(found.a_RK, kind)
    torch.testing.assert_close(lengths, split(published.a_RK, kind)[0], rtol=20 * EPS, atol=0)
    torch.testing.assert_close(units, split(trained.a_RK, kind)[1], rtol=0, atol=20 * EPS)
    assert torch.equal(found.b_DR, published.b_DR)


def test_lengths_that_a_refinement_comes_back_with_do_not_count():
    published, trained = unrelated([4, 4])
    scales = torch.tensor([[0.1], [1.0], [5.0], [100.0]], dtype=torch.float64)
    found = refine_directions(published, scales * trained.a_RK, Axis.RANK)
    wanted = refine_directions(published, trained.a_RK, Axis.RANK)
    torch.testing.assert_close(found.a_RK, wanted.a_RK, rtol=20 * EPS, atol=0)


def test_a_row_that_lost_its_direction_or_never_had_one_stays():
    published, trained = unrelated([4, 4])
    a, refined = published.a_RK.clone(), trained.a_RK.clone()
    a[1], refined[3] = 0, 0
    found = refine_directions(LoraFactors(a, published.b_DR), refined, Axis.RANK)
    assert torch.equal(found.a_RK[1], a[1])
    assert torch.equal(found.a_RK[3], a[3])


def test_a_refinement_that_trained_nothing_changes_nothing_but_rounding():
    (published,) = unrelated([4])
    found = refine_directions(published, published.a_RK, Axis.RANK)
    torch.testing.assert_close(found.a_RK, published.a_RK, rtol=8 * EPS, atol=0)


# --- the global stage, by everybody -------------------------------------------------------


@pytest.mark.parametrize("axis", list(Axis))
def test_a_federated_global_stage_takes_the_mean_direction_of_a_and_nothing_else(axis):
    method = FedLoRAOptimizer(axis=axis, global_stage=GlobalStage.FEDERATED)
    published, w = start(), weights(1, 2, 3)
    members = [LoraFactors(3 * f.a_RK, published.b_DR) for f in drifted(3)]
    begun = GlobalModule(factors=published)
    found = combine(method, members, w, start=begun, round=2).factors
    kind = VECTORS[axis][0]
    units = [split(f.a_RK, kind)[1] for f in members]
    mean = sum(x * v for x, v in zip(normalised(w), units, strict=True))
    wanted = joined(split(published.a_RK, kind)[0], mean / mean.norm(dim=1, keepdim=True), kind)
    torch.testing.assert_close(found.a_RK, wanted, rtol=0, atol=100 * EPS)
    assert torch.equal(found.b_DR, published.b_DR)
    # The rounds between are as without it.
    plain = combine(method, drifted(3), w, start=begun, round=3).factors
    assert torch.equal(plain.a_RK, combine(FedLoRAOptimizer(axis=axis), drifted(3), w).factors.a_RK)


def test_a_federated_global_stage_is_every_second_round():
    method = FedLoRAOptimizer(global_stage=GlobalStage.FEDERATED, refine_steps=7)
    plain, directions = compose(method).plans()
    assert (plain.trained, plain.refined) == ((Part.A, Part.B), ())
    assert "refine_steps" not in plain.settings
    assert directions.trained == directions.published == (Part.A,)
    assert directions.refined == ()
    assert directions.settings["refine_steps"] == 7
    assert directions.settings["directions_alone"] == 1
    assert plain.personal_stage
    assert directions.personal_stage
    without = FedLoRAOptimizer(global_stage=GlobalStage.FEDERATED, refine_steps=0)
    assert without.plans == FedLoRAOptimizer(refine_steps=0).plans


# --- what a run is told --------------------------------------------------------------------


def test_both_stages_are_part_of_the_plan():
    recipe = compose(FedLoRAOptimizer(axis=Axis.DORA, refine_steps=7, personal_epochs=2))
    (plan,) = recipe.plans()
    assert plan.trained == plan.published == (Part.A, Part.B)
    assert plan.private == ()
    assert plan.refined == (Part.A,)
    assert plan.features == {WorkerFeature.PERSONAL_STAGE}
    assert plan.settings == {
        "axis": 2,
        "refine_steps": 7,
        "refine_learning_rate": 1e-4,
        "personal_epochs": 2,
        "personal_learning_rate": 1e-3,
    }
    assert not recipe.properties.exact
    assert not recipe.properties.linear
    assert recipe.properties.keeps_basis


def test_stages_of_no_steps_are_left_out():
    (plan,) = FedLoRAOptimizer(refine_steps=0, personal_epochs=0).plans
    assert plan.refined == ()
    assert not plan.personal_stage
    assert plan.settings == {"axis": 0}
    members, w = drifted(3), weights(1, 2, 3)
    found = combine(FedLoRAOptimizer(refine_steps=0, personal_epochs=0), members, w).factors
    assert torch.equal(found.a_RK, combine(FedLoRAOptimizer(), members, w).factors.a_RK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine_steps": -1}, "expected refine_steps >= 0 .* got -1"),
        ({"personal_epochs": -2}, "expected personal_epochs >= 0 .* got -2"),
        ({"refine_learning_rate": 0.0}, "expected a finite refine_learning_rate above 0, got 0.0"),
        ({"personal_learning_rate": float("nan")}, "personal_learning_rate above 0, got nan"),
        (
            {"order": Order.PARALLEL, "global_stage": GlobalStage.FEDERATED},
            "is about a stage after a round",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(FedLoraError, match=message) as caught:
        FedLoRAOptimizer(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
