"""FedIT: average the LoRA factors A and B separately.

Paper   Zhang, Vahidian, Kuo, Li, Zhang, Yu, Wang, Chen, "Towards Building the Federated GPT:
        Federated Instruction Tuning", 2023, arXiv:2305.05644.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u.
Bias    B A differs from T = sum_u w_u B_u A_u by the weighted covariance of the factors,
        T - B A = sum_u w_u (B_u - B)(A_u - A): zero iff it vanishes, as for one client, for a
        common A, or for a common B. A common start is not enough: after the first local step
        the A_u differ.
Needs   one rank for the whole cohort. Scales may differ: they are folded into B_u first.
Cost    2 R (D + K) flops per module, R = U r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import (
    ModuleResult,
    Publication,
    active_cohort,
    uniform_rank,
)
from aggregator_service.aggregation.gauge import filled
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import weighted_sum

__all__ = ["FedIT", "factor_mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedIT:
    """Factor-wise weighted mean."""

    name: ClassVar[str] = "fedit"
    mixed_ranks: ClassVar[bool] = False
    keeps_basis: ClassVar[bool] = True

    def aggregate_module(
        self,
        cohort: Sequence[LoraFactors],
        weights_U: Tensor,
        *,
        rank: int,
        generator: torch.Generator | None = None,
        publication: Publication | None = None,  # noqa: ARG002 - one result for all
    ) -> ModuleResult:
        """The means of the factors; see `base.Aggregator`."""
        members, weights_U = active_cohort(cohort, weights_U)
        uniform_rank(self.name, members, rank, mixed=self.mixed_ranks)
        mean = factor_mean(members, weights_U).to(members[0].dtype)
        return ModuleResult(factors=filled(mean, rank, generator or torch.Generator()))


def factor_mean(members: Sequence[LoraFactors], weights_U: Tensor) -> LoraFactors:
    """(sum_u w_u A_u, sum_u w_u B_u) in float64, lower ranks padded with zero components."""
    rank = max(f.rank for f in members)
    padded = [f.padded(rank) for f in members]
    return LoraFactors(
        weighted_sum([f.a_RK for f in padded], weights_U),
        weighted_sum([f.b_DR for f in padded], weights_U),
    )
