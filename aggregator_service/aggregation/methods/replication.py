"""Replication: average every component over the workers that own it.

Paper   Byun, Lee, "Towards Federated Low-Rank Adaptation of Language Models with Rank
        Heterogeneity", NAACL 2025, arXiv:2406.17477.
Rule    A[j] = sum_{u: r_u > j} w_u A_u[j] / sum_{u: r_u > j} w_u, and the columns of B likewise.
Bias    the factor mean's, component by component; nothing is diluted by workers that have no
        room for a component. Equal ranks: `fedit`.
Needs   nothing but the factors; any mix of ranks.
Cost    2 R (D + K) flops per module, R = sum of ranks.

Readings. The paper fills a small worker's missing rows with the mean of the large ones' rows and
averages then, which is the rule above. A component of the global adapter that no update of the
round reaches is left as it was (test_replication.py holds both). The paper gives higher ranks to
workers with good validation scores after the first round; here a worker's rank is its own affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import owner_mean, unreached_kept
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.spec import AdapterKind

__all__ = ["Replication"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication(MethodDefaults):
    """Factor mean over each component's owners."""

    name: ClassVar[str] = "replication"
    about: ClassVar[About] = About(
        title="Replication padding",
        paper="Byun and Lee 2025, arXiv:2406.17477",
        exactness="wrong by the covariance of the factors",
        cost="2R(d+k)",
        needs="nothing",
        choose="clients of different ranks whose basis should last",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=True,
        keeps_basis=True,
        mixed_ranks=True,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The means over owners; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        mean = owner_mean(cohort.members, cohort.weights_U)
        return Combination(factors=unreached_kept(mean, cohort, work.rank))
