"""Sums over a cohort whose bits do not depend on anything but the order of their terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["weighted_sum"]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """sum_u w_u X_u in float64, added one after the other in the order given.

    Two passes per narrow tensor, a cast and a multiply-add, through one buffer for all of them:
    fresh memory per term would be given back to the system and faulted in again. Whole tensors,
    not panels: each panel starts a new stream from memory, which costs more than the second-level
    cache saves.

    Args:
        tensors: at least one tensor; all of one shape, on one device.
        weights: one number per tensor.

    Returns:
        A new float64 tensor of that shape.
    """
    total = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    wide: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        term = tensor
        if tensor.dtype is not torch.float64:
            wide = torch.empty_like(total) if wide is None else wide
            term = wide.copy_(tensor)
        total.add_(term, alpha=float(weight))
    return total
