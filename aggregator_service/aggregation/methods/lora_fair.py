"""LoRA-FAIR: keep the mean of A, correct the mean of B so that the product is nearly right.

Paper   Bian, Wang, Zhang, Xu, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and
        Initialization Refinement", ICCV 2025, arXiv:2411.14961.
Rule    A = sum_u w_u A_u,  B = B~ + D,  B~ = sum_u w_u B_u,
        D = (T - B~ A) A^T (A A^T + lambda I)^-1,    lambda = ridge tr(A A^T) / r,
        the minimum of |(B~ + D) A - T|_F^2 + lambda |D|_F^2 over all corrections D.
Bias    not exact. Before rounding never worse than `fedit`, which is D = 0; as ridge goes to 0 the
        remaining error is orthogonal to the rows of A, and B is the best there is for this A.
        One half-step of the alternation whose limit is `optimal`.
Needs   one rank for the whole cohort.
Cost    2 R (D + K) flops for the means, 4 R r (D + K) for the correction, R = U r.

Readings. The paper's server finds D by gradient steps on a loss that weighs a similarity (or
distance) of (B~ + D) A to T against the size of D. Its exact loss, weight and number of steps are
not known to us: the closed form above, with the squared distance and a relative weight, is ours
(test_lora_fair.py: the dense ridge problem, both limits). T - B~ A is formed from the clients'
deviations, without cancellation. Weights are the run's, as for every method. The paper's
refinement of what workers begin with is what every worker does here: it begins with the
published B and A.

Shape suffixes: R rank, K in_features, D out_features, L components of what averaging loses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason

__all__ = ["LoRAFAIR"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAFAIR(MethodDefaults):
    """Mean of A, ridge-corrected mean of B."""

    ridge: float = 1e-6
    """weight of the correction's size, relative to the mean squared row norm of A; large values
    give the factor mean"""

    name: ClassVar[str] = "lora_fair"
    stacks: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="LoRA-FAIR",
        paper="Bian et al. 2025, arXiv:2411.14961",
        exactness="before rounding never worse than fedit; the best B for the mean of A",
        cost="4Rr(d+k)",
        needs="one rank for the cohort",
        choose="nearer than fedit for little work, with an unchanged A",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=False,
        keeps_basis=True,
        mixed_ranks=False,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"lora_fair: expected a finite ridge above 0, got {self.ridge}",
                hint="A ridge of 1e-12 is as good as none",
            )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of A and the corrected mean of B; see `base.Method`."""
        rank = uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        mean = factor_mean(cohort.members, cohort.weights_U)
        lost = CentredCohort.of(cohort.members, cohort.weights_U).covariance
        gram_RR = mean.a_RK @ mean.a_RK.T
        size = float(gram_RR.trace()) / rank
        if size == 0:
            # No correction of B moves the product.
            return Combination(factors=mean)
        gram_RR.diagonal().add_(self.ridge * size)
        seen_LR = lost.a_RK @ mean.a_RK.T
        correction_DR = lost.b_DR @ torch.linalg.solve(gram_RR, seen_LR, left=False)
        before = float(torch.linalg.vector_norm(mean.b_DR))
        moved = float(torch.linalg.vector_norm(correction_DR))
        return Combination(
            factors=LoraFactors(mean.a_RK, mean.b_DR + correction_DR),
            measurements={"relative_correction": moved / before} if before > 0 else {},
        )
