"""truncate: the best adapter of the run's rank, by truncated singular value decomposition.

Source  Eckart and Young, "The approximation of one matrix by another of lower rank",
        Psychometrika 1, 1936.
Rule    B A = U S V^T;  U_q S_q V_q^T, published as B = U_q S_q^1/2, A = S_q^1/2 V_q^T.
Bias    sqrt(sum_{i>q} s_i^2), the least of any adapter of rank q; none at q >= rank.
Cost    R^2 (D + K) + 12 R^3 flops with the combination's rank R up to min(D, K) / 4, and
        12 R (D + K) (q + 8) above (`fedlora.numerics.decomposition`); the product is never formed.

The result's components are singular vectors, not the clients' components: state that lives in
factor space (Adam's moments) is void after it, unless a run's gauge is closest_a or procrustes.
Where the product has a lower rank than asked for, spare components get random rows in A and
zeros in B.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from aggregator_service.aggregation.base import Combination, ModuleResult, Properties, Work
from aggregator_service.aggregation.gauge import sorted_factors
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.spare_components import filled, fresh
from fedlora.adapters.stacked import block_product
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import Core, decompose
from fedlora.runs.method import Gauge

__all__ = ["Core", "Truncate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """Truncated singular value decomposition of the combination's product."""

    gauge: Gauge = field(default=Gauge.BALANCED, metadata={"option": False})
    """of a method that truncates in another one; a run asks for another with method.gauge"""
    core: Core = Core.AUTO
    """auto, qr, gram (singular values below 1e-7 of the largest are lost) or randomised (for many
    clients; within 1e-3 of the least error)"""

    name: ClassVar[str] = "truncate"

    @property
    def stacks(self) -> bool:
        """With a core that is asked for by name; auto takes none for many updates."""
        return self.core in (Core.QR, Core.GRAM)

    def properties(self, combined: Properties) -> Properties:
        """A new basis, and an error wherever the rank does not suffice."""
        return replace(combined, exact=False, linear=False, keeps_basis=False)

    def compress(self, combination: Combination, cohort: ModuleCohort, work: Work) -> ModuleResult:
        """See `base.CompressionRule`."""
        rank = work.rank
        if rank < 1:
            raise FedLoraError(Reason.INVALID_ARGUMENT, f"rank must be at least 1, got {rank}")
        first = cohort.members[0]
        svd = decompose(block_product(combination.factors), rank=rank, core=self.core)
        ideal, lost = svd.tail_norm(0), svd.tail_norm(rank)
        measurements = {
            **combination.measurements,
            "kept_rank": float(svd.rank),
            "effective_rank": svd.effective_rank(),
            "truncation_error": lost / ideal if ideal > 0 else 0.0,
            "truncation_is_estimate": float(svd.is_estimate),
        }
        if svd.rank == 0:
            shape = (first.out_features, first.in_features)
            factors = fresh(*shape, rank, first.a_RK.device, work.generator)
        else:
            factors = filled(sorted_factors(svd, self.gauge), rank, work.generator)
        return ModuleResult(
            factors=factors,
            base=cohort.start.base if cohort.start else None,
            extras=combination.extras,
            state=combination.state,
            measurements=measurements,
        )
