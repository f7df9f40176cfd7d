"""FLoRA: the stack of all factors, added to the base model."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.dense_rounds import F32, F64, effective, play, product
from support.recipes import combine
from support.reference import EPS, ideal, relative_error, tail_norm

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.flora import FLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part


def test_one_number_worked_by_hand():
    # (3 * 2 * 1 + 1 * 6 * 5) / 4 = 9, from two components of ranks 1 and 1.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(one, 2 * one), LoraFactors(5 * one, 6 * one)]
    result = combine(FLoRA(), members, weights(3, 1), rank=1)
    assert float(result.base.delta_weight()) == 9
    assert float(result.factors.delta_weight()) == 0


@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 8, 3], [2, 20], [5]])
def test_the_stack_is_the_mean_of_products_for_any_ranks(ranks):
    members, w = unrelated(ranks), weights(*range(1, len(ranks) + 1))
    result = combine(FLoRA(), members, w, rank=4)
    assert relative_error(product(result.base, ideal(members, w)), ideal(members, w)) < 100 * EPS


def test_the_stack_is_a_copy_with_the_weight_on_one_factor():
    members, w = unrelated([2, 3]), weights(1, 3)
    base = combine(FLoRA(), members, w, rank=4).base
    assert torch.equal(base.a_RK, torch.cat([f.a_RK for f in members]))
    expected = torch.cat([members[0].b_DR * 0.25, members[1].b_DR * 0.75], dim=1)
    assert torch.equal(base.b_DR, expected)


@pytest.mark.parametrize(("publication", "bound"), [(F32, 1e-6), (F64, 1e4 * EPS)])
def test_after_three_rounds_the_base_model_has_gained_every_rounds_mean(publication, bound):
    first = GlobalModule(factors=LoraFactors(normal(1, 4, 17), torch.zeros(24, 4).double()))
    w = weights(3, 2, 1)
    # Ranks add up to 7 a round: the third has to recompress 21 components to 17.
    versions, wanted = play(
        FLoRA(), first, w, rounds=3, rank=4, publication=publication, ranks=[4, 2, 1]
    )
    for version, target in zip(versions, wanted, strict=True):
        assert relative_error(effective(version, target), target) < bound
        assert not version.factors.b_DR.any()
    assert [v.base.rank for v in versions] == [7, 14, 17]


def test_a_start_that_is_not_fresh_is_counted_once():
    # The workers' products hold what they started from, and the adapter that held it is gone.
    members, w = drifted(3), weights(1, 1, 1)
    before = GlobalModule(factors=start(), base=start(r=2, seed=9))
    result = combine(FLoRA(), members, w, start=before)
    wanted = before.base.delta_weight() + ideal(members, w)
    assert relative_error(effective(result, wanted), wanted) < 100 * EPS


def test_a_cap_leaves_the_best_stack_of_its_rank():
    members, w = unrelated([4, 4]), weights(1, 1)
    target = ideal(members, w)
    result = combine(FLoRA(max_base_rank=5), members, w)
    error = float((result.base.delta_weight() - target).norm())
    assert error == pytest.approx(tail_norm(target, 5), rel=1e-9)
    lost = result.measurements["base_truncation_error"]
    assert lost == pytest.approx(error / float(target.norm()), rel=1e-9)


def test_what_a_run_is_told():
    recipe = compose(FLoRA())
    (plan,) = recipe.plans()
    assert plan.trained == (Part.A, Part.B)
    assert set(plan.published) == {Part.A, Part.B, Part.BASE_A, Part.BASE_B}
    assert recipe.properties.exact
    assert recipe.properties.mixed_ranks
    assert not recipe.properties.linear


def test_a_weight_of_zero_is_absence():
    members = unrelated([4, 3])
    cohort = ModuleCohort.of(members, weights(1, 0))
    assert compose(FLoRA()).aggregate_module(cohort, rank=4).base.rank == 4
