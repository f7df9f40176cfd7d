"""AFLoRA: a frozen A, and B with components that workers prune as they go.

Paper   Zhou, Pang, Wang, "AFLoRA: Adaptive Federated Fine-Tuning of Large Language Models with
        Resource-Aware Low-Rank Adaption", 2025, arXiv:2505.24773 (v1).
Rule    worker u trains B_u and a diagonal l_u over one A, and sends the columns of B_u diag(l_u)
        that it keeps; B = sum_u w_u B_u diag(l_u), an absent column counting as zero, with
        w_u = n_u r_u / sum_v n_v r_v. Afterwards a worker with the server's data may train A.
Bias    none: A is common, so that B A = sum_u w_u B_u diag(l_u) A, pruned as it was sent.
Needs   workers that freeze A and send chosen components. Training A needs a worker with the role
        `server_data`; without one it is left out, and A stays.
Cost    2 R D flops per module, R = sum of ranks.

Readings. Known of the paper: the update B diag(l) A, ranks adapted from the diagonal and the
client's budget, one factor trained by the clients and the other by the server, zero-padding with
rank-aware weights and, in its first version, which we follow, refinement on public data. Ours: that
A is the server's factor, that the diagonal is sent inside of B, the importance |l_i| |b_i| by
which a worker keeps columns, the budget as a share of them, the weights and the learning rate.
test_aflora.py holds the rule; nothing of a pruned column is left where all have pruned it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.common_factor import mean_over_common_a
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from aggregator_service.aggregation.weighting.rank_aware import RankAware
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan, Selection

__all__ = ["AFLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AFLoRA(MethodDefaults):
    """Rank-aware mean of pruned B over one A."""

    upload_budget: float = 0.5
    """share of the components of its rank that a worker keeps and sends, above 0, at most 1"""
    refine_steps: int = 20
    """steps on A by a worker with the server's data, after the round; 0 for none"""
    refine_learning_rate: float = 1e-4
    """learning rate of those steps"""

    name: ClassVar[str] = "aflora"
    about: ClassVar[About] = About(
        title="AFLoRA",
        paper="Zhou et al. 2025, arXiv:2505.24773",
        exactness="exact, within the rows of a common A",
        cost="2Rd",
        needs="workers that freeze A and choose components; a server_data worker to train A",
        choose="workers of unequal means, little traffic",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=True,
        mixed_ranks=True,
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        if not 0 < self.upload_budget <= 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"aflora: expected an upload_budget above 0 and at most 1, got "
                f"{self.upload_budget}",
            )
        if self.refine_steps < 0:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"aflora: expected refine_steps >= 0 (0 for none), got {self.refine_steps}",
            )
        if not (math.isfinite(self.refine_learning_rate) and self.refine_learning_rate > 0):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "aflora: expected a finite refine_learning_rate above 0, got "
                f"{self.refine_learning_rate}",
                hint="refine_steps = 0 leaves A as it is",
            )

    @property
    def weighting(self) -> RankAware:
        """By examples times rank."""
        return RankAware()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """Chosen columns of B are trained and sent; A is the server's."""
        settings: dict[str, float] = {"upload_budget": self.upload_budget}
        if self.refine_steps:
            settings |= {
                "refine_steps": self.refine_steps,
                "refine_learning_rate": self.refine_learning_rate,
            }
        return (
            RoundPlan(
                trained=(Part.B,),
                published=(Part.B,),
                selection=Selection.REST_ZERO,
                refined=(Part.A,) if self.refine_steps else (),
                settings=settings,
            ),
        )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of B over the common A; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        return Combination(factors=mean_over_common_a(self.name, cohort))
