"""A worker that lowers its own rank: the tail's share of the loss, and what becomes of the tail.

Source  HetLoRA (Cho et al. 2024, arXiv:2401.06432). With g the `tail_fraction` and R' = floor(g R),
        the tail of a module is B[:, R':] A[R':], and tail_penalty |B[:, R':]| |A[R':]|, summed over
        modules, is added to the loss of every step. Where that sum without its weight came out
        smaller than it began, the worker goes on with R' components, not with fewer than
        `min_rank`.

What a plan does not name is not done: without a fraction there is no tail.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedlora.plugins import LocalHooks
from fedlora.runs.plan import RoundPlan

__all__ = ["Tail"]


class Tail:
    """The last components of an adapter, in one round.

    Args:
        plan: the round's.
        rank: R.
        a: A of every module, R x K, by its path.
        b: B, D x R.
    """

    def __init__(
        self,
        plan: RoundPlan,
        rank: int,
        a: Mapping[str, nn.Parameter],
        b: Mapping[str, nn.Parameter],
    ) -> None:
        settings = plan.settings
        share = math.floor(settings.get("tail_fraction", 1.0) * rank)
        kept = max(int(settings.get("min_rank", 1)), share)
        self._kept = min(rank, kept) if plan.may_lower_rank else rank
        self._rank = rank
        self._weight = settings.get("tail_penalty", 0.0)
        self._factors = [(a[path], b[path]) for path in a]
        self._at_start = float(self._size().detach())

    @property
    def hooks(self) -> LocalHooks:
        """What goes into a step: the tail's share of the loss, where there is one."""
        weighs = self._kept < self._rank and self._weight
        return LocalHooks(penalty=self._penalty if weighs else None)

    def rank_at_end(self) -> int:
        """With how many components the worker goes on."""
        return self._kept if float(self._size().detach()) < self._at_start else self._rank

    def _penalty(self) -> Tensor:
        return self._weight * self._size()

    def _size(self) -> Tensor:
        sizes = [
            torch.linalg.vector_norm(b_DR[:, self._kept :])
            * torch.linalg.vector_norm(a_RK[self._kept :])
            for a_RK, b_DR in self._factors
        ]
        return torch.stack(sizes).sum()
