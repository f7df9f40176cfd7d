"""LoraFactors: folded once, checked once."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, start

from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError


def test_folding_puts_the_scale_into_b_and_nowhere_else():
    a, b = normal(1, 3, 5), normal(2, 7, 3)
    folded = LoraFactors.fold(a, b, 2.0)
    assert torch.equal(folded.a_RK, a)
    assert torch.equal(folded.delta_weight(), 2.0 * b @ a)
    assert (folded.rank, folded.in_features, folded.out_features) == (3, 5, 7)


def test_padding_keeps_the_product():
    factors = start(r=3)
    wide = factors.padded(5)
    assert wide.rank == 5
    torch.testing.assert_close(wide.delta_weight(), factors.delta_weight())
    assert factors.padded(3) is factors


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(3, 5), torch.zeros(7, 2)),
        (torch.zeros(5), torch.zeros(7, 5)),
        (torch.zeros(0, 5), torch.zeros(7, 0)),
        (torch.zeros(3, 5), torch.zeros(7, 3, dtype=torch.float64)),
        (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(7, 3, dtype=torch.int64)),
    ],
)
def test_factors_that_do_not_belong_together_are_refused(a, b):
    with pytest.raises(FedLoraError, match="expected lora_A"):
        LoraFactors(a, b)
