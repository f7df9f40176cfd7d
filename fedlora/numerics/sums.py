"""Sums over a cohort whose bits do not depend on anything but the order of their terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["weighted_sum"]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """sum_u w_u X_u in float64, added one after the other in the order given.

    Args:
        tensors: at least one tensor; all of one shape, on one device.
        weights: one number per tensor.

    Returns:
        A new float64 tensor of that shape.
    """
    total = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(torch.float64), alpha=float(weight))
    return total
