"""AFLoRA: workers train B and prune it; A is the server's.

Paper   Zhou, Pang, Wang, "AFLoRA: Adaptive Federated Fine-Tuning of Large Language Models with
        Resource-Aware Low-Rank Adaption", 2025, arXiv:2505.24773 (version 1).
Rule    worker: dW = B diag(l) A with A frozen; keeps the components of largest |l_i| |b_i| within
        its budget, and sends their columns of B diag(l);
        server: B = sum_u w_u pad(B_u diag(l_u)),  w_u ~ n_u r_u;
        then a worker with the server's data may train A.
Bias    none: A is common, so B A is the mean of the products; a component that a worker has pruned
        counts as zero in its product, and in the mean.
Needs   workers that freeze A and choose components; a worker of the role `server_data` for the
        stage on A, which is left out without one.
Cost    2 R D flops per module, R = sum of ranks.

Readings. We have the paper, and no code. l never leaves the worker by itself: it is folded into the
columns that are sent. What is pruned is zero for that worker, not unchanged: that is what pruning
means, and a component that all prune is zero in the result (test_aflora.py holds both). Version 1
refines with public data, version 2 differs; this is the first. Not to be taken for the AFLoRA of
ACL 2024, which freezes adapters adaptively.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import (
    About,
    Combination,
    MethodDefaults,
    ModuleCohort,
    Properties,
    Work,
    uniform_rank,
)
from aggregator_service.aggregation.common_factor import mean_over_common_a
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.weighting.rank_aware import RankAware
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan, Selection

__all__ = ["AFLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AFLoRA(MethodDefaults):
    """Mean of pruned B over one A, which the server's data refine."""

    upload_budget: float = 0.5
    """share of a worker's components, over all layers, that it keeps and sends"""
    global_steps: int = 20
    """steps on A of a worker with the server's data; 0 leaves the stage out"""
    global_learning_rate: float = 1e-4
    """of that stage"""

    name: ClassVar[str] = "aflora"
    about: ClassVar[About] = About(
        title="AFLoRA (federated)",
        paper="Zhou et al. 2025, arXiv:2505.24773",
        exactness="exact, of pruned updates over one A",
        up="d per component kept",
        down="rd, and rk more after a stage on A",
        cost="2Rd",
        needs="workers that freeze A and choose components",
        choose="workers of different means, little traffic, and public data on the server",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=True,
        mixed_ranks=True,
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        rate = 0 < self.global_learning_rate < float("inf")
        if not 0 < self.upload_budget <= 1 or self.global_steps < 0 or not rate:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "aflora: expected upload_budget in (0, 1], global_steps >= 0 and a finite "
                f"global_learning_rate > 0, got {self.upload_budget}, {self.global_steps} and "
                f"{self.global_learning_rate}",
            )

    @property
    def weighting(self) -> RankAware:
        """By examples and rank."""
        return RankAware()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """Columns of B are trained, pruned and sent; then A, on the server's data."""
        return (
            RoundPlan(
                trained=(Part.B,),
                published=(Part.B,),
                selection=Selection.REST_ZERO,
                refined=(Part.A,) if self.global_steps else (),
                settings={
                    "upload_budget": self.upload_budget,
                    "global_steps": float(self.global_steps),
                    "global_learning_rate": self.global_learning_rate,
                },
            ),
        )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of B over the common A; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        return Combination(factors=mean_over_common_a(self.name, cohort))
