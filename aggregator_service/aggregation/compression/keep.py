"""keep: publish the combination as it is.

Spare components, where the run's rank is larger, get random rows in A and zeros in B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import Combination, ModuleResult, Properties, Work
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.spare_components import filled
from fedlora.errors import FedLoraError, Reason

__all__ = ["Keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """No compression."""

    name: ClassVar[str] = "keep"
    stacks: ClassVar[bool] = False

    def properties(self, combined: Properties) -> Properties:
        """Those of the combination."""
        return combined

    def compress(self, combination: Combination, cohort: ModuleCohort, work: Work) -> ModuleResult:
        """See `base.CompressionRule`.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD for a combination of higher rank than the run's.
        """
        factors = combination.factors
        if factors.rank > work.rank:
            raise FedLoraError(
                Reason.UNSUPPORTED_METHOD,
                f"a combination of rank {factors.rank} cannot be published at rank {work.rank} "
                "as it is",
                hint="Compress it: truncate, energy, residual or merge",
            )
        return ModuleResult(
            factors=filled(factors, work.rank, work.generator),
            base=cohort.start.base if cohort.start else None,
            extras=combination.extras,
            state=combination.state,
            measurements=combination.measurements,
        )
