"""Fed-RAC-LoRA: one factor over a random other one, merged every round."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, weights
from support.dense_rounds import F32, effective, play, product
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.methods.rac_lora import RACLoRA, RandomFactor
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason

SIDES = [Side.A, Side.B]
LR = 0.1


def drawn(trained, draw, seed=0):
    """The adapter that a round ends with."""
    idle = LoraFactors(torch.zeros(4, 17).double(), torch.zeros(24, 4).double())
    return combine(RACLoRA(trained=trained, draw=draw), [idle], weights(1), seed=seed).factors


def after_one_step(trained, draw, gradient):
    """W - W0 after workers took one SGD step each from a drawn adapter, and the drawn factor."""
    adapter = drawn(trained, draw)
    # d loss / d B = G A^T and d loss / d A = B^T G at the product's gradient G.
    if trained is Side.B:
        stepped = LoraFactors(adapter.a_RK, adapter.b_DR - LR * gradient @ adapter.a_RK.T)
    else:
        stepped = LoraFactors(adapter.a_RK - LR * adapter.b_DR.T @ gradient, adapter.b_DR)
    method = RACLoRA(trained=trained, draw=draw)
    result = combine(method, [stepped] * 2, weights(1, 3), start=GlobalModule(factors=adapter))
    return effective(result, gradient), adapter


def projection(rows):
    """On the space of the rows, densely."""
    return rows.T @ torch.linalg.pinv(rows @ rows.T) @ rows


def test_one_number_worked_by_hand():
    # B goes from 0 to 2 and 6 over A = 5: the base model gains 5 (3 * 2 + 1 * 6) / 4 = 15.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(5 * one, 2 * one), LoraFactors(5 * one, 6 * one)]
    result = combine(RACLoRA(), members, weights(3, 1))
    assert float(result.base.delta_weight()) == 15
    assert float(result.factors.delta_weight()) == 0
    assert float(result.factors.a_RK.abs()) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("trained", SIDES)
def test_over_orthonormal_rows_one_sgd_step_is_the_theorys_projected_step(trained):
    gradient = normal(8, 24, 17)
    moved, adapter = after_one_step(trained, RandomFactor.ORTHONORMAL, gradient)
    if trained is Side.B:
        h = projection(adapter.a_RK)
        expected, twice = -LR * gradient @ h, moved @ h
    else:
        h = projection(adapter.b_DR.T)
        expected, twice = -LR * h @ gradient, h @ moved
    assert relative_error(moved, expected) < 1000 * EPS
    assert relative_error(twice, moved) < 1000 * EPS


@pytest.mark.parametrize("trained", SIDES)
def test_over_normal_entries_one_sgd_step_is_not_projected(trained):
    gradient = normal(8, 24, 17)
    moved, adapter = after_one_step(trained, RandomFactor.NORMAL, gradient)
    if trained is Side.B:
        plain = -LR * gradient @ adapter.a_RK.T @ adapter.a_RK
        theory = -LR * gradient @ projection(adapter.a_RK)
    else:
        plain = -LR * adapter.b_DR @ adapter.b_DR.T @ gradient
        theory = -LR * projection(adapter.b_DR.T) @ gradient
    assert relative_error(moved, plain) < 1000 * EPS
    cosine = float((moved * theory).sum() / moved.norm() / theory.norm())
    assert 0.5 < cosine < 0.999


@pytest.mark.parametrize("draw", list(RandomFactor))
@pytest.mark.parametrize("trained", SIDES)
def test_the_mean_of_the_drawn_steps_is_r_over_the_layers_size(trained, draw):
    # Over 400 draws the mean of H, or of A^T A, is (r / n) I. An entry's standard deviation is
    # below sqrt(2 r) / n per draw, hence 0.15 r / n after 400: 6 sigma over 17^2 entries.
    size = 17 if trained is Side.B else 24
    total = torch.zeros(size, size, dtype=torch.float64)
    for seed in range(400):
        adapter = drawn(trained, draw, seed)
        rows = adapter.a_RK if trained is Side.B else adapter.b_DR.T
        total += rows.T @ rows / 400
    expected = 4 / size * torch.eye(size, dtype=torch.float64)
    assert float((total - expected).abs().max()) < 6 * (2 * 4) ** 0.5 / size / 20


@pytest.mark.parametrize("trained", SIDES)
def test_the_mean_over_a_common_factor_is_exact_over_rounds(trained):
    zero_a, zero_b = torch.zeros(4, 17).double(), torch.zeros(24, 4).double()
    begun = (normal(1, 4, 17), zero_b) if trained is Side.B else (zero_a, normal(1, 24, 4))
    first = GlobalModule(factors=F32.read_back(LoraFactors(*begun)))
    part = Part(trained.value)
    versions, wanted = play(
        RACLoRA(trained=trained), first, weights(1, 2, 3), rounds=5, rank=4, parts=(part,)
    )
    for version, target in zip(versions, wanted, strict=True):
        assert relative_error(effective(version, target), target) < 1e-6
    # r components a round, and no more than the layer has.
    assert [v.base.rank for v in versions] == [4, 8, 12, 16, 17]


def test_from_pefts_start_a_needs_a_round_before_it_learns():
    # B = 0, so that workers that train A alone change nothing; the round's end draws a B.
    zero_b = torch.zeros(24, 4).double()
    members = [LoraFactors(f.a_RK, zero_b) for f in drifted(3)]
    result = combine(RACLoRA(trained=Side.A), members, weights(1, 1, 1))
    assert result.base is None
    assert bool((result.factors.b_DR.norm(dim=0) > 0).all())
    assert not result.factors.a_RK.any()


@pytest.mark.parametrize("trained", SIDES)
def test_every_round_draws_anew(trained):
    one, two = (drawn(trained, RandomFactor.ORTHONORMAL, s) for s in (1, 2))
    gap = (one.a_RK - two.a_RK).norm() + (one.b_DR - two.b_DR).norm()
    assert float(gap) > 0.1


def test_more_components_than_the_layer_has():
    a = normal(4, 30, 17)
    members = [LoraFactors(a, normal(40 + u, 24, 30)) for u in range(2)]
    w = weights(1, 2)
    result = combine(RACLoRA(), members, w)
    assert result.base.rank == 17
    assert relative_error(product(result.base, ideal(members, w)), ideal(members, w)) < 1000 * EPS
    rows = result.factors.a_RK
    torch.testing.assert_close(rows.T @ rows, torch.eye(17).double(), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("trained", SIDES)
def test_what_a_run_is_told(trained):
    recipe = compose(RACLoRA(trained=trained))
    (plan,) = recipe.plans()
    assert plan.trained == (Part(trained.value),)
    assert set(plan.published) == {Part.A, Part.B, Part.BASE_A, Part.BASE_B}
    assert recipe.properties.exact
    assert recipe.properties.linear
    assert not recipe.properties.keeps_basis


def test_what_it_cannot_combine_is_refused():
    with pytest.raises(FedLoraError, match="rac_lora needs one lora_A for the whole") as caught:
        combine(RACLoRA(), drifted(3), weights(1, 1, 1))
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    with pytest.raises(FedLoraError, match="rac_lora needs one lora_B for the whole"):
        combine(RACLoRA(trained=Side.A), drifted(3), weights(1, 1, 1))
