"""FLoRA: stack the clients' factors and add the stack to the base model.

Paper   Wang, Shen, He, Sun, Wang, Lyu, Li, "FLoRA: Federated Fine-Tuning Large Language Models
        with Heterogeneous Low-Rank Adaptations", 2024, arXiv:2409.05976.
Rule    B_s = [w_1 B_1 .. w_U B_U],  A_s = [A_1; ..; A_U];  base <- base + B_s A_s; every worker
        begins the next round with a fresh adapter: A random, B = 0.
Bias    none: B_s A_s = T = sum_u w_u B_u A_u, for any mix of ranks.
Needs   workers that add a low-rank change to their frozen weights; every worker needs every
        round's stack.
Cost    a copy. The running stack grows by R = sum of ranks every round, and readers fetch all
        of it each time; without a cap up to min(D, K) of rank, where it is recompressed every
        round (`base_stack`).

Readings. The paper adds the stack to the frozen weights. Here the weights stay as they are and
the running stack lies beside them as factors, which is the same model, can be saved and served,
and works with quantised weights (test_flora.py: three rounds against a dense sum). The weight
w_u is on one factor only; on both it would count twice.

A restart from zero in every round costs what the optimiser has learnt of the directions: with
many short rounds it is a poor choice, with few long ones a good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.base_stack import check_max_base_rank
from aggregator_service.aggregation.compression.merge import Merge
from aggregator_service.aggregation.module_cohort import ModuleCohort

__all__ = ["FLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FLoRA(MethodDefaults):
    """Stacked factors, merged."""

    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""

    name: ClassVar[str] = "flora"
    stacks: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="FLoRA (stacking)",
        paper="Wang et al. 2024, arXiv:2409.05976",
        exactness="exact, for any ranks",
        base_rank="tR",
        cost="copies",
        needs="workers that change their frozen weights",
        choose="mixed ranks, few rounds, and no error allowed",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=False,
        keeps_basis=False,
        mixed_ranks=True,
        gauge_free=True,
    )

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    @property
    def compression(self) -> Merge:
        """Into the base model."""
        return Merge(max_base_rank=self.max_base_rank)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:  # noqa: ARG002
        """T itself, as the stack of all products; see `base.Method`."""
        return Combination(factors=cohort.stack())
