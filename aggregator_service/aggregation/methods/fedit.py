"""FedIT: average the LoRA factors A and B separately.

Paper   Zhang, Vahidian, Kuo, Li, Zhang, Yu, Wang, Chen, "Towards Building the Federated GPT:
        Federated Instruction Tuning", 2023, arXiv:2305.05644.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u.
Bias    B A differs from T = sum_u w_u B_u A_u by the weighted covariance of the factors,
        T - B A = sum_u w_u (B_u - B)(A_u - A): zero iff it vanishes, as for one client, for a
        common A, or for a common B. A common start is not enough: after the first local step
        the A_u differ.
Needs   one rank for the whole cohort. Scales may differ: they are folded into B_u first.
Cost    2 R (D + K) flops per module, R = U r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.spec import AdapterKind

__all__ = ["FedIT"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedIT(MethodDefaults):
    """Factor-wise weighted mean."""

    name: ClassVar[str] = "fedit"
    about: ClassVar[About] = About(
        title="FedIT",
        paper="Zhang et al. 2023, arXiv:2305.05644",
        exactness="wrong by the covariance of the factors",
        cost="2R(d+k)",
        needs="one rank for the cohort",
        choose="the baseline of most of the literature",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The means of the factors; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        return Combination(factors=factor_mean(cohort.members, cohort.weights_U))
