"""residual: publish the combination, and add to the base model what it lacks of the ideal.

Paper   Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
        Foundation Models", 2025, arXiv:2410.09432.
Rule    base <- base + (T - B A), T = sum_u w_u B_u A_u, (B, A) as published.
Bias    none: W0 + base + B A after the round is W0 + base + T before it. A cap on the stack
        leaves the best approximation of its rank.
Needs   workers that add a low-rank change to their frozen weights.
Cost    about 4 R^2 (D + K) + 20 R^3 flops per module, R = sum of ranks + 2 r; no D x K matrix.

(B, A) is taken rounded and read back, so that the stack also holds what rounding the adapter
lost: little in float32, most of the residual in bfloat16. The residual is written with nothing
large in it, in the coordinates of `centred`,

    T - B A = sum_u w_u b_u a_u - (B - B~) A - B~ (A - A~),

and brought to its own rank: for a factor mean (U - 1) r, since the deviations of each factor sum
to zero. Components are dropped only while all of them together stay below float32's rounding of
T, which no reader of float32 weights can see.

A combination of higher rank than the run's, such as `optimal`'s, is truncated to its best
adapter of the run's rank first; the rest is then part of the residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import (
    Combination,
    CompressionRule,
    ModuleResult,
    Properties,
    Work,
)
from aggregator_service.aggregation.base_stack import (
    check_max_base_rank,
    grown,
    trimmed,
    with_changed_base,
)
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.compression.truncate import Truncate
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import product_norm

__all__ = ["Residual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What the adapter lacks goes into the base model."""

    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""

    name: ClassVar[str] = "residual"
    stacks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    def properties(self, combined: Properties) -> Properties:
        """Exact whatever the combination is, while no cap cuts the stack; needs every update."""
        exact = self.max_base_rank == 0
        changed = with_changed_base(self.name, combined, exact=exact)
        return replace(changed, gauge_free=exact, linear=False)

    def compress(self, combination: Combination, cohort: ModuleCohort, work: Work) -> ModuleResult:
        """See `base.CompressionRule`."""
        rule: CompressionRule = Keep() if combination.factors.rank <= work.rank else Truncate()
        result = rule.compress(combination, cohort, work)
        start = cohort.start
        centred = CentredCohort.of(
            cohort.members, cohort.weights_U, reference=start.factors if start else None
        )
        ideal = centred.ideal_norm()
        lacking = _lacking(centred, work.publication.read_back(result.factors))
        change = trimmed(lacking, tolerance=_roundoff(lacking, work) * ideal)
        base = grown(start.base if start else None, change, max_base_rank=self.max_base_rank)
        missing = product_norm(change.b_DR, change.a_RK) if change else 0.0
        return replace(
            result,
            base=base.stack,
            measurements={
                **result.measurements,
                "residual_rank": float(change.rank) if change else 0.0,
                "residual": missing / ideal if ideal > 0 else 0.0,
                **base.measurements,
            },
        )


def _lacking(centred: CentredCohort, published: LoraFactors) -> LoraFactors:
    """T - B A as one product."""
    rank = max(centred.rank, published.rank)
    adapter, mean = published.padded(rank), centred.mean.padded(rank)
    lost = centred.covariance
    return LoraFactors(
        torch.cat([lost.a_RK, adapter.a_RK, mean.a_RK - adapter.a_RK]),
        torch.cat([lost.b_DR, mean.b_DR - adapter.b_DR, mean.b_DR], dim=1),
    )


def _roundoff(lacking: LoraFactors, work: Work) -> float:
    """Share of |T| below which a residual is rounding: of float32, or of the float64 sums."""
    size = max(lacking.out_features, lacking.in_features)
    stored = torch.promote_types(work.publication.dtype, torch.float32)
    return max(torch.finfo(stored).eps, size * torch.finfo(torch.float64).eps)
