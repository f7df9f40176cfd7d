"""optimal: the best adapter of a given rank, by truncated singular value decomposition.

Source  Eckart and Young, "The approximation of one matrix by another of lower rank",
        Psychometrika 1, 1936.
Rule    T = sum_u w_u B_u A_u = U S V^T;  B = U_q S_q^1/2,  A = S_q^1/2 V_q^T.
Bias    none at q >= rank(T); else the least error of any adapter of rank q,
        sqrt(sum_{i>q} s_i^2), which is also what every other method is measured against.
Needs   nothing but the factors; any mix of ranks; any result rank.
Cost    about 4 R^2 (D + K) + 20 R^3 flops per module (QR core), R = sum of ranks; T is never
        formed.

This is also the member of FLoRA-NA's family with a full r x q matrix of coefficients per client
instead of one scalar: the minimum of |B A - T| over all B = sum_u B_u P_u, A = sum_u Q_u A_u.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.truncate import Core, Truncate
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.spec import AdapterKind

__all__ = ["Optimal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimal(MethodDefaults):
    """Truncated singular value decomposition of the mean product."""

    core: Core = Core.AUTO
    """auto, qr, gram (singular values below 1e-7 of the largest are lost) or randomised (for many
    clients; within 1e-3 of the least error)"""

    name: ClassVar[str] = "optimal"
    reads_grams: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="Truncated SVD of the mean product",
        paper="Eckart and Young 1936",
        exactness="the least error of any adapter of its rank",
        cost="4R^2(d+k) + 20R^3",
        needs="nothing",
        choose="least loss, mixed ranks, or another rank than was sent",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=False,
        keeps_basis=False,
        mixed_ranks=True,
        gauge_free=True,
        kinds=frozenset(AdapterKind),
    )

    @property
    def compression(self) -> Truncate:
        """Truncation, in balanced factors."""
        return Truncate(core=self.core)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:  # noqa: ARG002
        """T itself, as the stack of all products; see `base.Method`."""
        return Combination(factors=cohort.stack())
