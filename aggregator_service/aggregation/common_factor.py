"""The factor that all members of a cohort share, where a method trains only the other one."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregator_service.aggregation.base import ModuleCohort
from aggregator_service.aggregation.draws import Side
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

__all__ = ["common_factor"]


def common_factor(name: str, cohort: ModuleCohort, side: Side) -> Tensor:
    """A (R x K) or B (D x R) of the members of largest rank; a lower rank has its first part.

    With one A for all, sum_u w_u B_u A = (sum_u w_u B_u) A: averaging the other factor is exact.
    It must be the same bit for bit, as a frozen factor is.

    Args:
        name: the method's, for messages.
        cohort: the members.
        side: the factor that nobody trained.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for members that differ in it.
    """
    factors = [_rows(f, side) for f in cohort.members]
    largest = max(factors, key=len)
    for u, rows in enumerate(factors):
        if not torch.equal(rows, largest[: len(rows)]):
            gap = float((rows - largest[: len(rows)]).abs().max())
            raise FedLoraError(
                Reason.UNSUPPORTED_METHOD,
                f"{name} needs one lora_{side.value.upper()} for the whole cohort, which nobody "
                f"trains; that of member {u + 1} of {len(factors)} differs by up to {gap:.3g}",
                hint="Adapters trained in both factors: use fedex_lora, flora, optimal or fedit",
            )
    wide = largest.to(torch.float64)
    return wide if side is Side.A else wide.T


def _rows(factors: LoraFactors, side: Side) -> Tensor:
    """The factor with one row per component."""
    return factors.a_RK if side is Side.A else factors.b_DR.T
