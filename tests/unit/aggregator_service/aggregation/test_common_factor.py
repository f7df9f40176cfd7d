"""The factor that nobody trained must be the same in every update."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, weights

from aggregator_service.aggregation.common_factor import common_factor
from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

A, B = normal(1, 4, 17), normal(2, 24, 4)


def cohort(members):
    return ModuleCohort.of(members, weights(*[1.0] * len(members)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_one_of_the_largest_rank_in_float64(dtype):
    over_a = [LoraFactors(A[:r], normal(r, 24, r)).to(dtype) for r in (2, 4, 3)]
    found = common_factor("x", cohort(over_a), Side.A)
    assert torch.equal(found, A.to(dtype).double())
    over_b = [LoraFactors(normal(r, r, 17), B[:, :r]).to(dtype) for r in (2, 4, 3)]
    found = common_factor("x", cohort(over_b), Side.B)
    assert torch.equal(found, B.to(dtype).double())


@pytest.mark.parametrize(("side", "word"), [(Side.A, "lora_A"), (Side.B, "lora_B")])
def test_a_difference_is_refused_and_named(side, word):
    one, other = LoraFactors(A, B), LoraFactors(A.clone(), B.clone())
    (other.a_RK if side is Side.A else other.b_DR)[1, 2] += 0.5
    message = f"some_method needs one {word} .* member 2 of 2 differs by up to 0.5"
    with pytest.raises(FedLoraError, match=message) as caught:
        common_factor("some_method", cohort([one, other]), side)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "fedex_lora" in caught.value.hint


def test_the_last_bit_counts():
    nudged = torch.nextafter(A, A + 1)
    with pytest.raises(FedLoraError, match="differs"):
        common_factor("x", cohort([LoraFactors(A, B), LoraFactors(nudged, B)]), Side.A)
    with pytest.raises(FedLoraError, match="differs"):
        common_factor("x", cohort(drifted(3)), Side.B)
