"""FFA-LoRA: freeze A, and average B.

Paper   Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", 2024,
        arXiv:2403.12313.
Rule    A stays as it was drawn;  B = sum_u w_u B_u.
Bias    none: sum_u w_u B_u A = B A. The updates are confined to A's rows, for ever: fewer
        directions at a low rank, and a weaker fit where clients differ much.
Needs   workers that leave A as it is. In return half the traffic, and noise that is added to B
        for privacy enters the model linearly.
Cost    2 R D flops per module, R = sum of ranks.

Readings. The paper has one rank for all. Here a worker of rank r_u has the first r_u rows of one
A, and its B is padded with zero columns: sum_u w_u B_u A[:r_u] is still B A, exactly
(test_ffa_lora.py). A column that some workers do not have is averaged with their zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.common_factor import mean_over_common_a
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.plan import RoundPlan

__all__ = ["FFALoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FFALoRA(MethodDefaults):
    """Mean of B over one frozen A."""

    name: ClassVar[str] = "ffa_lora"
    about: ClassVar[About] = About(
        title="FFA-LoRA",
        paper="Sun et al. 2024, arXiv:2403.12313",
        exactness="exact, within the rows of a frozen A; with DoRA for B A, not for the weights",
        cost="2Rd",
        needs="workers that freeze A",
        choose="half the traffic, differential privacy, secure sums",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=True,
        mixed_ranks=True,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """B is trained and sent; A is never touched."""
        return (RoundPlan(trained=(Part.B,), published=(Part.B,)),)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of B over the common A; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        return Combination(factors=mean_over_common_a(self.name, cohort))
