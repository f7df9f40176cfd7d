"""Fed-RAC-LoRA: train one factor over a random other one, merge, and draw anew.

Paper   Malinovsky, Michieli, Hammoud, Ceritli, Elesedy, Ozay, Richtárik, "Randomized Asymmetric
        Chain of LoRA: The First Meaningful Theoretical Framework for Low-Rank Adaptation", 2024,
        arXiv:2410.08305.
Rule    block t: a random A_t (R x K) is frozen, B begins at zero and is trained;
        base <- base + (sum_u w_u B_u) A_t; or the same with the two sides exchanged.
Bias    none: the frozen factor is common, so the mean of the other is exact.
Needs   workers that freeze a factor and add a low-rank change to their frozen weights; every
        worker needs every merge.
Cost    2 R D flops per module, R = sum of ranks. The stack grows by r every round; `base_stack`
        says what a cap costs.

Which step it is. Let G be the gradient of the loss in the layer's weight W. One SGD step of B
from zero, with rate lr and A's product served at scale s (lora_B is B / s), moves

    W  by  -lr s^2 G A^T A.

The theory's step is W <- W - gamma G H, H = A^T (A A^T)^+ A, the projection on A's rows, of mean
(R / K) I; its linear rate under the Polyak-Lojasiewicz condition carries that R / K. The two are
one step, gamma = lr s^2, if the rows are orthonormal: `draw = orthonormal`, the default. The rows
of an independent normal A span the same random subspace, so H has the law that the paper's
example gives it. With `draw = normal`, entries of variance 1 / K, A^T A has the mean (R / K) I
too, but is no projection: that is what plain SGD does with the paper's draw, and not the step of
the theory. For `trained = a` B is drawn instead, with s inside it: -lr B B^T G, from the left.
Workers that train with AdamW take neither step (test_rac_lora.py holds both against dense ones).

Readings. The drawn factor is published with the adapter, not a seed: bits of random generators
differ between devices and versions. A run begins from PEFT's initial adapter, in which A is
random and B zero: with `trained = b` that is the first block's draw; with `trained = a` the first
round can learn nothing, since B is zero, and only its end draws a B.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.base_stack import check_max_base_rank
from aggregator_service.aggregation.common_factor import common_factor
from aggregator_service.aggregation.compression.merge import Merge
from aggregator_service.aggregation.draws import Law, Side
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.runs.plan import RoundPlan

__all__ = ["RACLoRA", "RandomFactor"]


class RandomFactor(enum.StrEnum):
    """How the frozen factor of a block is drawn."""

    ORTHONORMAL = "orthonormal"
    NORMAL = "normal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RACLoRA(MethodDefaults):
    """A chain of merged updates, each over a random factor."""

    trained: Side = Side.B
    """factor that is trained, a or b; the other one is drawn anew every round"""
    draw: RandomFactor = RandomFactor.ORTHONORMAL
    """orthonormal: an SGD step is the theory's projected one; normal: independent entries"""
    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""

    name: ClassVar[str] = "rac_lora"
    about: ClassVar[About] = About(
        title="Fed-RAC-LoRA",
        paper="Malinovsky et al. 2024, arXiv:2410.08305",
        exactness="exact, within a random subspace per round",
        base_rank="tr",
        cost="2Rd (or 2Rk)",
        needs="one rank for the cohort; workers that freeze a factor and change frozen weights",
        choose="a convergence guarantee for many rounds of little work",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=False,
        mixed_ranks=False,
    )

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    @property
    def compression(self) -> Merge:
        """Into the base model, and a new draw."""
        drawn = Side.A if self.trained is Side.B else Side.B
        return Merge(max_base_rank=self.max_base_rank, drawn=drawn, law=Law(self.draw.value))

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """One factor is trained and sent; both are new after the round."""
        return (RoundPlan(trained=(Part(self.trained.value),)),)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of the trained factor with the common one; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        mean = factor_mean(cohort.members, cohort.weights_U)
        if self.trained is Side.B:
            common = common_factor(self.name, cohort, Side.A)
            return Combination(factors=LoraFactors(common, mean.b_DR))
        common = common_factor(self.name, cohort, Side.B)
        return Combination(factors=LoraFactors(mean.a_RK, common))
