"""FRLoRA: the factor mean's progress goes into the base model, the adapter back to its start."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.dense_rounds import F32, effective, play, product, trained
from support.recipes import combine
from support.reference import EPS, mean_product, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.frlora import FRLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part


def test_one_number_worked_by_hand():
    # From 1 * 1; the mean of A = 2 and 4 is 3, of B = 2 and 6 is 4: the base model gains 12 - 1.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(2 * one, 2 * one), LoraFactors(4 * one, 6 * one)]
    before = GlobalModule(factors=LoraFactors(one, one))
    result = combine(FRLoRA(), members, weights(1, 1), start=before)
    assert float(result.base.delta_weight()) == pytest.approx(11, rel=1e-14)
    assert float(result.factors.delta_weight()) == 1


@pytest.mark.parametrize("b", [normal(6, 24, 4), torch.zeros(24, 4).double()])
def test_over_rounds_the_changes_of_all_of_them_add_up(b):
    # Dense: W gains B A - B0 A0 every round, from one and the same (A0, B0).
    first = GlobalModule(factors=F32.read_back(LoraFactors(normal(5, 4, 17), b)))
    origin, w = first.factors.delta_weight(), weights(1, 2, 3)
    versions, _ = play(FRLoRA(), first, w, rounds=3, rank=4)
    gained = torch.zeros_like(origin)
    for t, version in enumerate(versions, start=1):
        gained += mean_product(trained(first.factors, 3, seed=t), w) - origin
        assert relative_error(product(version.base, gained), gained) < 1e-6
        assert torch.equal(version.factors.a_RK, first.factors.a_RK)
        assert torch.equal(version.factors.b_DR, first.factors.b_DR)
    assert torch.linalg.matrix_rank(gained) > 4


def test_a_run_that_begins_with_the_weights_own_components_is_the_papers():
    # W0 = (W0 - B0 A0) + B0 A0: the first version changes nothing, and its base stack is -B0 A0.
    w0 = normal(11, 24, 17)
    u, s, vh = torch.linalg.svd(w0, full_matrices=False)
    a0, b0 = s[:4, None].sqrt() * vh[:4], u[:, :4] * s[:4].sqrt()
    first = GlobalModule(factors=LoraFactors(a0, b0), base=LoraFactors(a0, -b0))
    assert float(effective(first, w0).norm()) < 100 * EPS * float(w0.norm())
    members, w = trained(first.factors, 3, seed=1), weights(1, 2, 3)
    result = combine(FRLoRA(), members, w, start=first)
    frozen = w0 - b0 @ a0
    papers = frozen + (mean_product(members, w) - b0 @ a0) + b0 @ a0
    assert relative_error(w0 + effective(result, w0), papers) < 1000 * EPS


def test_a_cap_keeps_the_stack_small():
    before = GlobalModule(factors=start(), base=start(r=4, seed=9))
    result = combine(FRLoRA(max_base_rank=6), drifted(3), weights(1, 1, 1), start=before)
    assert result.base.rank == 6
    assert result.measurements["base_truncation_error"] > 0


def test_what_a_run_is_told():
    recipe = compose(FRLoRA())
    (plan,) = recipe.plans()
    assert plan.trained == (Part.A, Part.B)
    assert set(plan.published) == {Part.A, Part.B, Part.BASE_A, Part.BASE_B}
    assert not recipe.properties.exact
    assert recipe.properties.linear
