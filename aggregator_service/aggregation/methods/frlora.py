"""FRLoRA: average the factors, add the progress to the base model, and reset the adapter.

Paper   Yan, Feng, Zuo, Zhu, Goh, Liu, "Federated Residual Low-Rank Adaption of Large Language
        Models", ICLR 2025.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u,  base <- base + B A - B0 A0,  (A, B) <- (A0, B0).
Bias    the factor mean's: sum_u w_u B_u A_u - B A is lost (see `fedit`). The reset loses
        nothing: W0 + base + B0 A0 after it is W0 + base + B A before it.
Needs   one rank for the whole cohort; workers that add a low-rank change to their frozen
        weights.
Cost    2 R (D + K) + 16 (2 r)^2 (D + K) flops per module, R = U r. The stack that
        readers fetch whole every round grows by 2 r at most, up to min(D, K) or the cap.

The updates of many rounds add up to a change of any rank, each of them learnt in the same
subspace to begin with.

Readings. The paper weighs clients equally: w_u = n_u / N here. Its (A0, B0) are the leading
singular components of W0, B0 = U S^1/2, A0 = S^1/2 V^T, with W0 - B0 A0 as the frozen weight.
The aggregator has no part in how a run's first adapter is made: it takes what the run began with
for (A0, B0), and a run that begins with those components and -B0 A0 in its base stack is the
paper's. With PEFT's usual start, B0 = 0, the reset is a restart from zero with the same A0
(test_frlora.py holds both).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.base_stack import check_max_base_rank
from aggregator_service.aggregation.compression.reset import Reset
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank

__all__ = ["FRLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FRLoRA(MethodDefaults):
    """Factor mean, moved into the base model."""

    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""

    name: ClassVar[str] = "frlora"
    about: ClassVar[About] = About(
        title="FRLoRA",
        paper="Yan et al., ICLR 2025",
        exactness="wrong by the covariance of the factors, as fedit",
        base_rank="2tr",
        cost="2R(d+k) + 64r^2(d+k)",
        needs="one rank for the cohort; workers that change their frozen weights; where a round "
        "began (--start outside a run)",
        choose="many rounds should add up to more than rank r, from one good subspace",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
    )

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    @property
    def compression(self) -> Reset:
        """The progress goes into the base model."""
        return Reset(max_base_rank=self.max_base_rank)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The means of the factors; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        return Combination(factors=factor_mean(cohort.members, cohort.weights_U))
