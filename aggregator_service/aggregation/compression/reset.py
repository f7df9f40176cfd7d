"""reset: add the round's progress to the base model, and put the adapter back to its start.

Paper   the reset of FRLoRA (`methods/frlora.py`).
Rule    base <- base + B A - B0 A0;  (A, B) <- (A0, B0).
Bias    none of its own: W0 + base + B0 A0 after the round is W0 + base + B A before the reset.
Needs   workers that add a low-rank change to their frozen weights, and a round that began from a
        known adapter.
Cost    about 16 R^2 (D + K) flops, R the combination's rank, to bring the difference of the two
        products to its own rank; at most 2 R components a round.

(A0, B0) is what the round began from. Every round ends there, so it is the run's version 0
without being remembered, and as rounded: the file's own bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import Combination, ModuleResult, Properties, Work
from aggregator_service.aggregation.base_stack import (
    check_max_base_rank,
    grown,
    trimmed,
    with_changed_base,
)
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import product_norm

__all__ = ["Reset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The combination's progress goes into the base model."""

    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""

    name: ClassVar[str] = "reset"
    stacks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    def properties(self, combined: Properties) -> Properties:
        """As exact as the combination; the adapter itself never moves."""
        exact = combined.exact and self.max_base_rank == 0
        changed = with_changed_base(self.name, combined, exact=exact)
        return replace(changed, keeps_basis=False, needs_start=True)

    def compress(
        self,
        combination: Combination,
        cohort: ModuleCohort,
        work: Work,  # noqa: ARG002
    ) -> ModuleResult:
        """See `base.CompressionRule`.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD where it is unknown what the round began from.
        """
        if cohort.start is None:
            raise FedLoraError(
                Reason.UNSUPPORTED_METHOD,
                "reset puts the adapter back to what the round began from, and that is not known",
                hint="Name the adapter that the workers started from, or use fedit or fedex_lora",
            )
        origin, now = cohort.start.factors.to(torch.float64), combination.factors
        # The difference is taken in float64 and brought to its own rank before it is published:
        # two products side by side would each be rounded by more than a small difference is worth.
        change = trimmed(
            LoraFactors(
                torch.cat([now.a_RK, origin.a_RK]),
                torch.cat([now.b_DR, -origin.b_DR], dim=1),
            ),
            tolerance=_roundoff(now, origin),
        )
        base = grown(cohort.start.base, change, max_base_rank=self.max_base_rank)
        return ModuleResult(
            factors=cohort.start.factors.to(torch.float64),
            base=base.stack,
            extras=combination.extras,
            state=combination.state,
            measurements={**combination.measurements, **base.measurements},
        )


def _roundoff(now: LoraFactors, origin: LoraFactors) -> float:
    """What the difference of two products of these sizes is worth in float64."""
    norms = sum(product_norm(f.b_DR, f.a_RK) for f in (now, origin))
    size = max(now.out_features, now.in_features)
    return size * torch.finfo(torch.float64).eps * norms
