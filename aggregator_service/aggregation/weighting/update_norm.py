"""Weights by the size of what each worker has learnt.

Paper   Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device
        Foundation Models", EMNLP 2024, arXiv:2401.06432.
Rule    w_u = |dW_u| / sum_v |dW_v|, with |dW_u|^2 = sum over modules of |B_u A_u|^2.
Needs   nothing of workers; the server looks at each update.
Cost    as `geometry.cohort_geometry`.

Readings. The norm is that of the whole product, what earlier rounds put into it included, over
the whole model: one weight per update, not per module. Norm weights let one update that blew up
take all; `cap` is ours. No weight exceeds it, and what is cut off goes to the others in
proportion to theirs: of all weights under the cap, those nearest to the norm weights in
Kullback-Leibler divergence. A cap below 1 / U can only mean equal weights. Where all products
are zero there is nothing to compare, and the data weights n_u / N are taken. test_update_norm.py
holds each of these.

Shape suffix: U clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import WeightingView, Weights, normalised
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.errors import FedLoraError, Reason

__all__ = ["UpdateNorm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateNorm:
    """w_u in proportion to the norm of B_u A_u over the whole model."""

    cap: float = 1.0
    """largest share of one update; 1 for none"""

    name: ClassVar[str] = "update_norm"
    sees_updates: ClassVar[bool] = True
    required_metrics: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.cap <= 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"weights by update norm: expected 0 < cap <= 1, got {self.cap}",
            )

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        norms_U = view.geometry().products_UU.diagonal().clamp(min=0).sqrt()
        shares_U = normalised(norms_U, NumExamples().weigh(view).values_U)
        return Weights(
            values_U=_capped(shares_U, self.cap),
            measurements={"largest_share_before_cap": float(shares_U.max())},
        )


def _capped(shares_U: Tensor, cap: float) -> Tensor:
    count = len(shares_U)
    if cap * count <= 1:
        return torch.full_like(shares_U, 1 / count)
    at_cap_U = torch.zeros(count, dtype=torch.bool)
    weights_U = shares_U
    # What the largest lose may lift others over the cap; each pass holds at least one more.
    while bool((over_U := (weights_U > cap) & ~at_cap_U).any()):
        at_cap_U |= over_U
        left = 1 - cap * int(at_cap_U.sum())
        below_U = torch.where(at_cap_U, 0.0, shares_U)
        if not below_U.any():
            below_U = (~at_cap_U).to(torch.float64)
        weights_U = torch.where(at_cap_U, cap, below_U * (left / below_U.sum()))
    return weights_U
