from __future__ import annotations

import torch

from aggregator_service.aggregation.update_shares import shared_factors
from fedlora.adapters.factors import LoraFactors


def factors(seed: int, dtype: torch.dtype = torch.float64) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(3, 5, generator=generator, dtype=dtype),
        torch.randn(7, 3, generator=generator, dtype=dtype),
    )


def test_a_whole_change_stays_bit_for_bit_beside_one_that_is_stretched():
    members, given = [factors(1, torch.float32), factors(2, torch.float32)], [factors(3)] * 2
    whole, stretched = shared_factors(members, given, (1.0, 2.0))
    assert torch.equal(whole.a_RK, members[0].a_RK.double())
    assert torch.equal(whole.b_DR, members[0].b_DR.double())
    assert stretched.dtype == whole.dtype == torch.float64
    assert torch.allclose(stretched.a_RK - given[1].a_RK, 2 * (members[1].a_RK - given[1].a_RK))


def test_the_product_moves_by_the_share_and_its_cross_term_by_the_square():
    member, given, share = factors(1), factors(2), 3.0
    (stretched,) = shared_factors([member], [given], (share,))
    change_a, change_b = member.a_RK - given.a_RK, member.b_DR - given.b_DR
    moved = stretched.b_DR @ stretched.a_RK - given.b_DR @ given.a_RK
    first = change_b @ given.a_RK + given.b_DR @ change_a
    assert torch.allclose(moved, share * first + share**2 * (change_b @ change_a))


def test_no_share_leaves_what_was_given():
    (kept,) = shared_factors([factors(1)], [factors(2)], (0.0,))
    assert torch.equal(kept.b_DR, factors(2).b_DR)
