"""The singular values of an ideal aggregate, as far as they are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Values"]


@dataclass(frozen=True, slots=True)
class Values:
    """The leading ones, and what is known of the others: nothing is left of exact ones."""

    leading_N: Tensor
    """descending"""
    unseen_norm: float = 0.0
    """norm of the others"""
    unseen_count: float = 0.0
    """how many equal ones they are worth"""

    def bound(self, rank: int) -> float:
        """The least error of an adapter of that rank (Eckart and Young)."""
        return math.hypot(float(torch.linalg.vector_norm(self.leading_N[rank:])), self.unseen_norm)

    def total(self) -> float:
        """Their sum."""
        return float(self.leading_N.sum()) + math.sqrt(self.unseen_count) * self.unseen_norm

    def squares(self) -> float:
        """Sum of their squares."""
        return float(self.leading_N.square().sum()) + self.unseen_norm * self.unseen_norm
