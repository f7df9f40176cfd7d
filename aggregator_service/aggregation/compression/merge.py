"""merge: add everything to the base model, and let the workers begin with a fresh adapter.

Paper   Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
        Low-Rank Adaptations", 2024, arXiv:2409.05976.
Rule    base <- base + B A, as low-rank factors; the new adapter has a random A and B = 0, so its
        product is zero.
Bias    none: W0 + base after the round is W0 + base before it, plus the combination's product.
Needs   workers that add a low-rank change to their frozen weights; every worker needs every
        round's change, whether it took part or not.
Cost    a copy; `base_stack` says what a cap costs. The stack that readers
        fetch whole every round grows by the combination's rank, up to min(D, K) or the cap.

Nothing of what workers learnt stays trainable in place: optimiser state is void every round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from aggregator_service.aggregation.base import Combination, ModuleResult, Properties, Work
from aggregator_service.aggregation.base_stack import (
    check_max_base_rank,
    grown,
    with_changed_base,
)
from aggregator_service.aggregation.draws import Law, Side, drawn_adapter
from aggregator_service.aggregation.module_cohort import ModuleCohort

__all__ = ["Merge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """The combination goes into the base model, whole."""

    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""
    drawn: Side = Side.A
    """factor of the fresh adapter that is random, a or b; the other one is zero"""
    law: Law = Law.INITIAL
    """initial (orthogonal rows of PEFT's norm), normal or orthonormal"""

    name: ClassVar[str] = "merge"
    stacks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    def properties(self, combined: Properties) -> Properties:
        """As exact as the combination, while no cap cuts the stack."""
        exact = combined.exact and self.max_base_rank == 0
        changed = with_changed_base(self.name, combined, exact=exact)
        return replace(changed, keeps_basis=False, draws_b=self.drawn is Side.B)

    def compress(self, combination: Combination, cohort: ModuleCohort, work: Work) -> ModuleResult:
        """See `base.CompressionRule`."""
        before = cohort.start.base if cohort.start else None
        base = grown(before, combination.factors, max_base_rank=self.max_base_rank)
        return ModuleResult(
            factors=drawn_adapter(
                cohort.members[0],
                work.rank,
                drawn=self.drawn,
                law=self.law,
                generator=work.generator,
            ),
            base=base.stack,
            extras=combination.extras,
            state=combination.state,
            measurements={**combination.measurements, **base.measurements},
        )
