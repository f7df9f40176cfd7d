"""A stack that is made when somebody looks: the same adapter as one that is made at once."""

from __future__ import annotations

import torch
from support.builders import unrelated, weights
from support.reference import EPS, ideal

from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.stacked import StackedFactors, block_product

MEMBERS = unrelated([4, 2, 5])
SHARES = (0.5, 0.3, 0.2)


def test_the_stack_is_the_weighted_sum_of_the_products():
    stack = ModuleCohort.of(MEMBERS, weights(5, 3, 2)).stack()
    expected = ideal(MEMBERS, weights(5, 3, 2))
    slack = 100 * EPS * float(expected.abs().max())
    torch.testing.assert_close(stack.delta_weight(), expected, rtol=0, atol=slack)


def test_its_sizes_are_known_without_stacking():
    stack = StackedFactors(MEMBERS, SHARES)
    assert (stack.rank, stack.out_features, stack.in_features) == (11, 24, 17)
    assert stack.dtype is torch.float64
    assert stack.blocks.b_blocks[0] is MEMBERS[0].b_DR


def test_updates_of_lower_precision_are_stacked_in_float64():
    stack = StackedFactors([f.to(torch.float32) for f in MEMBERS], SHARES)
    assert stack.a_RK.dtype is stack.b_DR.dtype is torch.float64


def test_it_can_be_padded_and_cast_like_any_adapter():
    stack = StackedFactors(MEMBERS, SHARES)
    wide = stack.padded(13).to(torch.float32)
    assert wide.rank == 13
    torch.testing.assert_close(wide.delta_weight(), stack.delta_weight().float())


def test_any_adapter_is_a_product_of_one_block():
    product = block_product(MEMBERS[0])
    assert product.weights == [1.0]
    assert product.b_blocks[0] is MEMBERS[0].b_DR
