"""Weighted means of the factors themselves, which many methods begin with.

Shape suffixes: U clients, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import weighted_sum

__all__ = ["factor_mean", "owner_mean", "owners_weight", "unreached_kept"]


def factor_mean(members: Sequence[LoraFactors], weights_U: Tensor) -> LoraFactors:
    """(sum_u w_u A_u, sum_u w_u B_u) in float64, lower ranks padded with zero components."""
    rank = max(f.rank for f in members)
    padded = [f.padded(rank) for f in members]
    return LoraFactors(
        weighted_sum([f.a_RK for f in padded], weights_U),
        weighted_sum([f.b_DR for f in padded], weights_U),
    )


def owner_mean(members: Sequence[LoraFactors], weights_U: Tensor) -> LoraFactors:
    """The same with every component averaged over the members whose rank reaches it."""
    mean = factor_mean(members, weights_U)
    owned_R = owners_weight(members, weights_U).to(mean.a_RK.device)
    return LoraFactors(mean.a_RK / owned_R[:, None], mean.b_DR / owned_R)


def owners_weight(members: Sequence[LoraFactors], weights_U: Tensor) -> Tensor:
    """The weight of all members whose rank reaches component j: R, float64, on the CPU.

    Exactly 1 where all do, so that nothing is divided by a rounded sum.
    """
    ranks = torch.tensor([f.rank for f in members])
    owned = [weights_U[ranks > j].sum() for j in range(int(ranks.max()))]
    owned_R = torch.stack(owned).to(torch.float64)
    owned_R[: int(ranks.min())] = 1.0
    return owned_R


def unreached_kept(mean: LoraFactors, cohort: ModuleCohort, rank: int) -> LoraFactors:
    """With the components of the round's start, up to `rank`, that no update of the round has."""
    if cohort.start is None or min(cohort.start.factors.rank, rank) <= mean.rank:
        return mean
    start = cohort.start.factors.to(mean.dtype)
    return LoraFactors(
        torch.cat([mean.a_RK, start.a_RK[mean.rank : rank]]),
        torch.cat([mean.b_DR, start.b_DR[:, mean.rank : rank]], dim=1),
    )
