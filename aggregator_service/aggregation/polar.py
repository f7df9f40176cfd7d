"""Magnitude and direction of LoRA factors: lengths of rows or columns, and what is left of them.

`fedlora.adapters.axis` says which vectors those are.

A vector x is m v with m = |x| and |v| = 1. One shorter than MIN_NORM has no direction: v is 0, and
x counts as 0. B is so at its start.

On the axis `rank` the product is B_D diag(b * a) A_D. It holds magnitudes only as products b * a,
so that (a c, b / c) is the same model.

Shape suffix: N vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters.axis import MIN_NORM, Axis
from fedlora.numerics import weighted_sum

__all__ = ["MIN_MEAN_NORM", "MIN_NORM", "Axis", "Polar", "decompose", "mean_polar", "recompose"]

MIN_MEAN_NORM = 0.1
"""length from which a mean of unit vectors has a direction worth following"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Polar:
    """One factor, split; float64."""

    magnitudes_N: Tensor
    directions: Tensor
    """of the factor's shape; unit vectors, or zeros where there is no direction"""
    dim: int
    """along which the vectors lie"""

    @property
    def has_direction(self) -> Tensor:
        """Which vectors have a direction."""
        return self.magnitudes_N >= MIN_NORM


def decompose(factor: Tensor, dim: int) -> Polar:
    """Splits a factor into its vectors' lengths and directions.

    Args:
        factor: A or B.
        dim: along which the vectors lie, `Axis.summed`.
    """
    wide = factor.to(torch.float64)
    magnitudes_N: Tensor = torch.linalg.vector_norm(wide, dim=dim)
    lengths = magnitudes_N.unsqueeze(dim)
    directions = torch.where(lengths >= MIN_NORM, wide / lengths.clamp(min=MIN_NORM), 0.0)
    return Polar(magnitudes_N=magnitudes_N, directions=directions, dim=dim)


def recompose(polar: Polar) -> Tensor:
    """The factor that was split."""
    return polar.magnitudes_N.unsqueeze(polar.dim) * polar.directions


def mean_polar(members: Sequence[Polar], weights_U: Tensor, before: Polar | None) -> Polar:
    """Means of the magnitudes, and means of the directions at length 1 again.

    A direction is the mean over the members that have one. Where that mean is shorter than
    MIN_MEAN_NORM the members contradict each other: the direction of `before` stays, if it has
    one there.

    Args:
        members: one factor of each client, split along one dimension.
        weights_U: summing to 1.
        before: the factor where the round began; None where it is unknown.
    """
    magnitudes_N = weighted_sum([p.magnitudes_N for p in members], weights_U)
    share_N = weighted_sum([p.has_direction for p in members], weights_U)
    total = weighted_sum([p.directions for p in members], weights_U)
    dim = members[0].dim
    # Where nobody has a direction the sum is 0, and so is what comes of it.
    mean = decompose(total / torch.where(share_N > 0, share_N, 1.0).unsqueeze(dim), dim)
    directions = mean.directions
    if before is not None:
        stays_N = (mean.magnitudes_N < MIN_MEAN_NORM) & before.has_direction
        directions = torch.where(stays_N.unsqueeze(dim), before.directions, directions)
    return Polar(magnitudes_N=magnitudes_N, directions=directions, dim=dim)
