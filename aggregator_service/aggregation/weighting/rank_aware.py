"""Weights by examples and rank: who trains more components counts more.

Paper   Zhou, Pang, Wang, "AFLoRA: Adaptive Federated Fine-Tuning of Large Language Models with
        Resource-Aware Low-Rank Adaption", 2025, arXiv:2505.24773.
Rule    w_u = n_u r_u / sum_v n_v r_v.
Needs   nothing of workers.
Cost    none; the server looks at no tensor.

Readings. r_u is the rank that the worker trains at, not how many of its components it chose to
send. Equal ranks give n_u / N bit for bit (test_rank_aware.py).

Shape suffix: U clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from aggregator_service.aggregation.weighting.facts import reweighted

__all__ = ["RankAware"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAware:
    """w_u in proportion to examples times rank."""

    name: ClassVar[str] = "rank_aware"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = ()

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        ranks_U = torch.tensor([update.rank for update in view.updates], dtype=torch.float64)
        # In this unit equal ranks are 1, and leave n_u as it is.
        return reweighted(view, ranks_U / ranks_U.max())
