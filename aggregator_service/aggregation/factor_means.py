"""Weighted means of the factors themselves, which many methods begin with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import weighted_sum

__all__ = ["factor_mean"]


def factor_mean(members: Sequence[LoraFactors], weights_U: Tensor) -> LoraFactors:
    """(sum_u w_u A_u, sum_u w_u B_u) in float64, lower ranks padded with zero components."""
    rank = max(f.rank for f in members)
    padded = [f.padded(rank) for f in members]
    return LoraFactors(
        weighted_sum([f.a_RK for f in padded], weights_U),
        weighted_sum([f.b_DR for f in padded], weights_U),
    )
