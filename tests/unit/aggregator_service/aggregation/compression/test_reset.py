"""reset: the progress goes into the base model, the adapter goes back."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, start, unrelated, weights
from support.dense_rounds import F32, F64, effective, play, product
from support.recipes import combine
from support.reference import EPS, ideal, mean_product

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.compression.reset import Reset
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason


def reset(method, members, w, *, origin, rank=4, **options):
    recipe = compose(method, compression=Reset(**options))
    return combine(recipe, members, w, rank=rank, start=origin)


def test_one_number_worked_by_hand():
    # B A = 3 * 4 = 12 against B0 A0 = 2 * 1: the base model gains 10.
    one = torch.ones(1, 1, dtype=torch.float64)
    origin = GlobalModule(factors=LoraFactors(one, 2 * one), base=LoraFactors(one, 5 * one))
    result = reset(FedIT(), [LoraFactors(4 * one, 3 * one)], weights(1), origin=origin, rank=1)
    assert float(result.base.delta_weight()) == pytest.approx(15, rel=1e-14)
    assert (float(result.factors.a_RK), float(result.factors.b_DR)) == (1, 2)


@pytest.mark.parametrize("base", [None, start(r=3, seed=9)])
def test_the_effective_weight_is_unchanged_by_the_reset(base):
    members, w = drifted(4), weights(1, 2, 3, 4)
    origin = GlobalModule(factors=start(), base=base)
    for method, dense in ((FedIT(), mean_product(members, w)), (Optimal(), ideal(members, w))):
        result = reset(method, members, w, origin=origin)
        wanted = product(base, dense) + dense
        gap = float((effective(result, dense) - wanted).norm())
        assert gap < 1000 * EPS * float(wanted.norm())


@pytest.mark.parametrize("publication", [F32, F64])
def test_the_adapter_is_version_zero_bit_for_bit_after_every_round(publication):
    first = GlobalModule(factors=publication.read_back(start()))
    recipe = compose(FedIT(), compression=Reset())
    versions, _ = play(recipe, first, weights(1, 2, 3), rounds=3, rank=4, publication=publication)
    for version in versions:
        assert torch.equal(version.factors.a_RK, first.factors.a_RK)
        assert torch.equal(version.factors.b_DR, first.factors.b_DR)


def test_a_round_adds_the_rank_of_its_progress_and_no_more():
    origin = GlobalModule(factors=start())
    assert reset(FedIT(), drifted(3), weights(1, 1, 1), origin=origin).base.rank == 8
    only_b = [LoraFactors(start().a_RK, f.b_DR) for f in drifted(3)]
    assert reset(FedIT(), only_b, weights(1, 1, 1), origin=origin).base.rank == 4


def test_workers_that_did_not_move_leave_the_base_model_alone():
    origin = GlobalModule(factors=start())
    assert reset(FedIT(), [start()] * 3, weights(1, 2, 4), origin=origin).base is None


def test_a_small_step_keeps_its_digits_when_the_base_is_published_in_float32():
    # The two products side by side in float32 would each be off by 6e-8 |B0 A0|, 60 % of the step.
    origin = GlobalModule(factors=start())
    members, w = drifted(1, drift=1e-7), weights(1)
    base = reset(FedIT(), members, w, origin=origin).base.to(torch.float32).to(torch.float64)
    step = members[0].delta_weight() - start().delta_weight()
    assert float((base.delta_weight() - step).norm()) < 1e-6 * float(step.norm())


def test_a_cap_bounds_the_stack():
    origin = GlobalModule(factors=start(), base=start(r=3, seed=9))
    result = reset(FedIT(), drifted(3), weights(1, 1, 1), origin=origin, max_base_rank=5)
    assert result.base.rank == 5
    assert result.measurements["base_truncation_error"] > 0


def test_without_a_known_start_there_is_nothing_to_go_back_to():
    with pytest.raises(FedLoraError, match="what the round began from, and that is not") as caught:
        reset(FedIT(), drifted(2), weights(1, 1), origin=None)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "fedex_lora" in caught.value.hint


def test_its_properties():
    exact = compose(Optimal(), compression=Reset()).properties
    assert exact.exact
    assert exact.changes_base
    assert exact.kinds == {AdapterKind.LORA}
    mean = compose(FedIT(), compression=Reset()).properties
    assert not mean.exact
    assert not mean.keeps_basis
    assert mean.linear


def test_a_stack_of_any_rank_can_be_reset():
    members, w = unrelated([2, 6, 9]), weights(1, 2, 3)
    origin = GlobalModule(factors=start())
    result = reset(Optimal(), members, w, origin=origin)
    wanted = ideal(members, w)
    gap = float((effective(result, wanted) - wanted).norm())
    assert gap < 1000 * EPS * float(wanted.norm())
