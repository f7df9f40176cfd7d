"""RoLoRA: train B and A in turns, and average the one that was trained.

Paper   Chen, Guo, Ju, Dalal, Khisti, Zhu, "Robust Federated Finetuning of LLMs via Alternating
        Optimization of LoRA", NeurIPS 2025, arXiv:2502.01755.
Rule    odd rounds: A is frozen, B = sum_u w_u B_u; even rounds: B is frozen, A = sum_u w_u A_u.
Bias    none: the frozen factor is common, so the mean of the other is exact, in every round.
Needs   workers that freeze a factor; one rank for the whole cohort.
Cost    2 R D or 2 R K flops per module, R = sum of ranks.

Readings. B comes first: in PEFT's start B is zero, and with it the gradient of A, so a first round
of A would learn nothing. A worker that has missed rounds is sent what it lacks of both factors.
Which factor a round is about follows from its number alone, so a restarted server goes on in
step (test_rolora.py holds these).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.common_factor import common_factor
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.plan import RoundPlan, plan_for

__all__ = ["RoLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoLoRA(MethodDefaults):
    """Mean of one factor over the other, in turns."""

    name: ClassVar[str] = "rolora"
    about: ClassVar[About] = About(
        title="RoLoRA",
        paper="Chen et al. 2025, arXiv:2502.01755",
        exactness="exact, one factor per round; with DoRA for B A, not for the weights",
        cost="2Rd or 2Rk",
        needs="workers that freeze a factor during a round; one rank for the cohort",
        choose="half the traffic and no error, and both factors shall learn",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """B first, then A, and so on."""
        return tuple(RoundPlan(trained=(p,), published=(p,)) for p in (Part.B, Part.A))

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of what the round trains, with the common other factor; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        mean = factor_mean(cohort.members, cohort.weights_U)
        if Part.B in plan_for(self.plans, cohort.round).trained:
            return Combination(
                factors=LoraFactors(common_factor(self.name, cohort, Side.A), mean.b_DR)
            )
        return Combination(factors=LoraFactors(mean.a_RK, common_factor(self.name, cohort, Side.B)))
