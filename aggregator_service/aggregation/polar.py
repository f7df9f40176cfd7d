"""Factors as lengths and directions.

    axis    A (R x K)                        B (D x R)
    rank    diag(a) A_D, unit rows           B_D diag(b), unit columns      one length per component
    row     diag(a) A_D, unit rows           diag(b) B_D, unit rows         one per row of each
    dora    A_D diag(a), unit columns        B_D diag(b), unit columns      one per column of each

With `rank` the product is B_D diag(b a) A_D: only the products of the two lengths count, so
(a c, b / c) is the same update. A vector shorter than 1e-8 has no direction but that of rounding;
its direction is zero, and so is what is put together of it.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Axis", "Polar", "axis_of_a", "axis_of_b", "polar"]

_SHORTEST = 1e-8
"""length below which a vector has no direction"""


class Axis(enum.StrEnum):
    """Which vectors of a factor have a length and a direction."""

    RANK = "rank"
    ROW = "row"
    DORA = "dora"


@dataclass(frozen=True, slots=True, eq=False)
class Polar:
    """A matrix as lengths times directions, broadcast against each other."""

    lengths: Tensor
    """of size 1 along the axis of the vectors"""
    directions: Tensor
    """vectors of length 1, or 0 where there is none"""

    def matrix(self) -> Tensor:
        """Put together again."""
        return self.lengths * self.directions


def polar(matrix: Tensor, dim: int) -> Polar:
    """Lengths and directions of the vectors that run along `dim`."""
    lengths: Tensor = torch.linalg.vector_norm(matrix, dim=dim, keepdim=True)
    found = lengths > _SHORTEST
    directions = torch.where(found, matrix / torch.where(found, lengths, 1.0), 0.0)
    return Polar(lengths, directions)


def axis_of_a(axis: Axis) -> int:
    """Along which dimension of A its vectors run."""
    return 0 if axis is Axis.DORA else 1


def axis_of_b(axis: Axis) -> int:
    """Along which dimension of B its vectors run."""
    return 1 if axis is Axis.ROW else 0
