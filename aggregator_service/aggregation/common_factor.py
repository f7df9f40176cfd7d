"""The factor that all members of a cohort share, where a method trains only the other one.

With one A for all, sum_u w_u B_u A = (sum_u w_u B_u) A: averaging the other factor is exact. A
worker of lower rank has the first rows of A, or columns of B, and counts with zeros in the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

__all__ = ["common_factor", "mean_over_common_a"]


def common_factor(name: str, cohort: ModuleCohort, side: Side) -> Tensor:
    """A (R x K) or B (D x R) of the members of largest rank, in float64.

    It must be the same in all of them bit for bit, as a frozen factor is.

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
                f"trains; that of {cohort.name(u)} differs by up to {gap:.3g}",
                hint="Adapters trained in both factors: use fedex_lora, flora, optimal or fedit",
            )
    wide = largest.to(torch.float64)
    return wide if side is Side.A else wide.T


def mean_over_common_a(name: str, cohort: ModuleCohort) -> LoraFactors:
    """(A, sum_u w_u B_u) over one frozen A, of the rank that A has where the round began.

    Raises:
        FedLoraError: as `common_factor`.
    """
    a_RK = common_factor(name, cohort, Side.A)
    mean = LoraFactors(a_RK, factor_mean(cohort.members, cohort.weights_U).b_DR)
    if cohort.start is None or cohort.start.factors.rank <= mean.rank:
        return mean
    # Rows of A that no member has are the frozen A's own, not spare ones to be drawn.
    whole = cohort.start.factors.to(mean.dtype)
    return LoraFactors(whole.a_RK, mean.padded(whole.rank).b_DR)


def _rows(factors: LoraFactors, side: Side) -> Tensor:
    """The factor with one row per component."""
    return factors.a_RK if side is Side.A else factors.b_DR.T
