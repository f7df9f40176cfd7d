"""merge: everything into the base model, and a fresh adapter."""

from __future__ import annotations

import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.dense_rounds import product
from support.recipes import combine
from support.reference import EPS, ideal, mean_product

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.compression.merge import Merge
from aggregator_service.aggregation.draws import Law, Side
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind


def merge(method, members, w, *, rank=4, seed=0, start=None, **options):
    recipe = compose(method, compression=Merge(**options))
    return combine(recipe, members, w, rank=rank, seed=seed, start=start)


def test_one_number_worked_by_hand():
    # base 10, and a combination of 2 * 3: 16, and nothing in the adapter.
    one = torch.ones(1, 1, dtype=torch.float64)
    before = GlobalModule(factors=LoraFactors(one, 0 * one), base=LoraFactors(one, 10 * one))
    result = merge(FedIT(), [LoraFactors(2 * one, 3 * one)], weights(1), rank=1, start=before)
    assert float(result.base.delta_weight()) == 16
    assert float(result.factors.delta_weight()) == 0


def test_the_combinations_product_is_added_whatever_it_is():
    members, w = drifted(3), weights(1, 2, 3)
    base = start(r=2, seed=9)
    before = GlobalModule(factors=start(), base=base)
    for method, dense in (
        (FedIT(), mean_product(members, w)),
        (Optimal(), ideal(members, w)),
    ):
        result = merge(method, members, w, start=before)
        gap = product(result.base, dense) - base.delta_weight() - dense
        assert float(gap.norm()) < 1000 * EPS * float(dense.norm())
        alone = merge(method, members, w)
        assert float((product(alone.base, dense) - dense).norm()) < 1000 * EPS * float(dense.norm())


def test_the_fresh_adapter_adds_nothing_and_can_learn():
    result = merge(Optimal(), unrelated([2, 6]), weights(1, 1), rank=5).factors
    assert result.rank == 5
    assert not result.b_DR.any()
    torch.testing.assert_close(
        result.a_RK @ result.a_RK.T, torch.eye(5).double() / 3, rtol=0, atol=100 * EPS
    )


def test_every_seed_draws_another_adapter():
    one, two = (merge(Optimal(), drifted(2), weights(1, 1), seed=s).factors for s in (1, 2))
    assert float((one.a_RK - two.a_RK).norm()) > 0.1


def test_the_other_factor_can_be_the_random_one():
    result = merge(Optimal(), drifted(2), weights(1, 1), drawn=Side.B, law=Law.ORTHONORMAL).factors
    assert not result.a_RK.any()
    torch.testing.assert_close(
        result.b_DR.T @ result.b_DR, torch.eye(4).double(), rtol=0, atol=100 * EPS
    )


def test_a_cap_bounds_the_stack_and_says_what_it_cost():
    before = GlobalModule(factors=start(), base=start(r=5, seed=9))
    result = merge(Optimal(), unrelated([3, 3]), weights(1, 1), start=before, max_base_rank=6)
    assert result.base.rank == 6
    assert result.measurements["base_rank"] == 6
    assert 0 < result.measurements["base_truncation_error"] < 1


def test_workers_that_did_not_move_leave_the_base_model_alone():
    idle = [LoraFactors(normal(1, 4, 17), torch.zeros(24, 4).double())] * 2
    assert merge(FedIT(), idle, weights(1, 1)).base is None


def test_its_properties():
    whole = compose(Optimal(), compression=Merge()).properties
    assert whole.exact
    assert whole.changes_base
    assert whole.mixed_ranks
    assert not whole.keeps_basis
    assert whole.kinds == {AdapterKind.LORA}
    assert not compose(Optimal(), compression=Merge(max_base_rank=9)).properties.exact
    mean = compose(FedIT(), compression=Merge())
    assert not mean.properties.exact
    assert mean.properties.linear
    (plan,) = mean.plans()
    assert plan.published == (Part.A, Part.B, Part.BASE_A, Part.BASE_B)
