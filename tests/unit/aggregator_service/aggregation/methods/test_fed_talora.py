"""Fed-TaLoRA: FedEx-LoRA's formula, at every border of a task too."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, start, weights
from support.dense_rounds import effective, play
from support.recipes import combine
from support.reference import relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fed_talora import FedTaLoRA
from aggregator_service.aggregation.methods.fedex_lora import FedExLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors


def test_one_number_worked_by_hand():
    # A = 3, B = 4, T = (2 * 2 + 6 * 4) / 2 = 14: the base model gains 14 - 12 = 2.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(2 * one, 2 * one), LoraFactors(4 * one, 6 * one)]
    result = combine(FedTaLoRA(), members, weights(1, 1))
    assert float(result.factors.delta_weight()) == 12
    assert float(result.base.delta_weight()) == pytest.approx(2, rel=1e-14)


def test_round_after_round_it_is_fedex_lora_bit_for_bit():
    first = GlobalModule(factors=start())
    ours, wanted = play(FedTaLoRA(), first, weights(1, 2, 3), rounds=4, rank=4)
    theirs, _ = play(FedExLoRA(), first, weights(1, 2, 3), rounds=4, rank=4)
    for one, other, target in zip(ours, theirs, wanted, strict=True):
        assert torch.equal(one.factors.b_DR, other.factors.b_DR)
        assert torch.equal(one.base.a_RK, other.base.a_RK)
        assert torch.equal(one.base.b_DR, other.base.b_DR)
        assert relative_error(effective(one, target), target) < 1e-6


def test_the_cap_reaches_the_stack():
    members = drifted(4)
    assert combine(FedTaLoRA(max_base_rank=5), members, weights(1, 1, 1, 1)).base.rank == 5


def test_what_it_promises():
    assert compose(FedTaLoRA()).properties == compose(FedExLoRA()).properties
