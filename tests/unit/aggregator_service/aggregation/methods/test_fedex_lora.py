"""FedEx-LoRA: the factor mean, and its residual in the base model."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.dense_rounds import F32, F64, effective, play, product
from support.recipes import combine
from support.reference import EPS, ideal, mean_product, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedex_lora import FedExLoRA
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part


def test_one_number_worked_by_hand():
    # A = 2, B = 3, T = 9: the base model gains 9 - 6 = 3.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(one, 2 * one), LoraFactors(5 * one, 6 * one)]
    result = combine(FedExLoRA(), members, weights(3, 1))
    assert (float(result.factors.a_RK), float(result.factors.b_DR)) == (2, 3)
    assert float(result.base.delta_weight()) == pytest.approx(3, rel=1e-14)


def test_the_adapter_is_fedits_and_the_residual_what_it_loses():
    members, w = drifted(4), weights(1, 2, 3, 4)
    result, mean = (combine(m, members, w) for m in (FedExLoRA(), FedIT()))
    assert torch.equal(result.factors.a_RK, mean.factors.a_RK)
    assert torch.equal(result.factors.b_DR, mean.factors.b_DR)
    missing = ideal(members, w) - mean_product(members, w)
    assert relative_error(product(result.base, missing), missing) < 1000 * EPS


# 24 x 17 and 17 x 24: a residual added the wrong way round would not even fit.
@pytest.mark.parametrize("shape", [(24, 17), (17, 24)])
@pytest.mark.parametrize(("publication", "bound"), [(F32, 1e-6), (F64, 1e4 * EPS)])
def test_it_is_exact_over_three_rounds_on_a_layer_that_is_not_square(shape, publication, bound):
    first = GlobalModule(factors=start(*shape))
    versions, wanted = play(
        FedExLoRA(), first, weights(5, 3, 1), rounds=3, rank=4, publication=publication
    )
    for version, target in zip(versions, wanted, strict=True):
        assert relative_error(effective(version, target), target) < bound
    # (U - 1) r = 8 a round, and no more than min(24, 17).
    assert [v.base.rank for v in versions] == [8, 16, 17]


def test_members_of_deficient_rank_leave_a_smaller_residual():
    members = [
        LoraFactors(normal(u, 4, 1) @ normal(50 + u, 1, 17), normal(90 + u, 24, 4))
        for u in range(3)
    ]
    w = weights(1, 2, 3)
    result = combine(FedExLoRA(), members, w)
    missing = ideal(members, w) - mean_product(members, w)
    assert result.base.rank == torch.linalg.matrix_rank(missing) == 3
    assert relative_error(product(result.base, missing), missing) < 1000 * EPS


def test_a_cap_keeps_the_stack_small_and_says_what_it_cost():
    first = GlobalModule(factors=start())
    method = FedExLoRA(max_base_rank=6)
    versions, _ = play(method, first, weights(1, 1, 1), rounds=3, rank=4)
    assert [v.base.rank for v in versions] == [6, 6, 6]
    assert not compose(method).properties.exact


def test_what_a_run_is_told():
    recipe = compose(FedExLoRA())
    (plan,) = recipe.plans()
    assert set(plan.published) == {Part.A, Part.B, Part.BASE_A, Part.BASE_B}
    assert recipe.properties.exact
    assert recipe.properties.keeps_basis
    assert not recipe.properties.linear
