"""FedSA-LoRA: share A, and keep B at home.

Paper   Guo, Zeng, Wang, Fan, Wang, Qu, "Selective Aggregation for Low-Rank Adaptation in Federated
        Learning", ICLR 2025, arXiv:2410.01463.
Rule    A = sum_u w_u A_u;  every worker goes on with its own B_u: its model is W0 + B_u A.
Bias    none in A. There is no global product: what would be lost by averaging B as well is not
        lost, and what others have learnt in B does not arrive.
Needs   workers that keep a factor from round to round, and come back with it; one rank.
Cost    2 R K flops per module, R = sum of ranks.

Readings. The identity stands for the B that nobody sends, so the "product" of an update is A
itself: certificates and norms are of A. The published adapter keeps the B that the run began
with, which is zero in PEFT's start: that is what a worker who never took part begins with, and
what is exported for it is the base model until it has trained a B of its own. Of modules trained
in full the paper keeps the classifier at home as well; here they are averaged as in every method
(test_fedsa_lora.py and the federations of scripted workers hold these).

Reported scores are of personal models, each on its own worker's data: not to be compared with a
global model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.runs.plan import RoundPlan

__all__ = ["FedSALoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedSALoRA(MethodDefaults):
    """Mean of A; B stays with the workers."""

    name: ClassVar[str] = "fedsa_lora"
    about: ClassVar[About] = About(
        title="FedSA-LoRA",
        paper="Guo et al. 2025, arXiv:2410.01463",
        exactness="exact in A; every worker's product is its own",
        cost="2Rk",
        needs="workers that keep B from round to round; one rank for the cohort",
        choose="workers differ in what they want, and shall have models of their own",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
    )
    compression: ClassVar[Keep] = Keep()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """A and B are trained; A is sent, B is not."""
        return (RoundPlan(trained=(Part.A,), private=(Part.B,), published=(Part.A,)),)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of A; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        mean = factor_mean(cohort.members, cohort.weights_U)
        # Every member's B is the same stand-in, so it is the mean's as well.
        stand_in = cohort.members[0].b_DR.to(mean.dtype)
        return Combination(factors=LoraFactors(mean.a_RK, stand_in))
