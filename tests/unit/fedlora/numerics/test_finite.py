"""Whether a tensor holds numbers only."""

from __future__ import annotations

import pytest
import torch

from fedlora.numerics import is_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("index", [0, 6, 12])
def test_one_element_is_enough(dtype, bad, index):
    tensor = torch.ones(13, dtype=dtype)
    assert is_finite(tensor)
    tensor[index] = bad
    assert not is_finite(tensor)


def test_opposite_infinities_do_not_hide_each_other():
    assert not is_finite(torch.tensor([float("inf"), float("-inf"), 0.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_whose_sum_overflows_are_numbers(dtype):
    assert is_finite(torch.full((9,), torch.finfo(dtype).max, dtype=dtype))


def test_nothing_is_finite():
    assert is_finite(torch.zeros(0, 4))
