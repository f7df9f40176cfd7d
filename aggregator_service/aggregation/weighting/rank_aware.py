"""Weights by the number of examples times the rank.

Paper   Zhou, Pang, Wang, AFLoRA, 2025, arXiv:2505.24773: zero-padding with rank-aware weights.
Rule    w_u = n_u r_u / sum_v n_v r_v.
Bias    a client of rank r_u counts with zeros in the components it lacks; with more weight for
        clients of high rank those components shrink less. T too is meant with these weights.
Needs   nothing but the ranks.
Cost    none; the server looks at no tensor.

Readings. The paper's formula is not known to us; n_u r_u is ours. r_u is the rank of the adapter
that a client was given, also where it then sends fewer components (test_rank_aware.py: one rank for
all gives n_u / N).

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
        ranks_U = torch.tensor([u.rank for u in view.updates], dtype=torch.float64)
        # Relative to the largest, so that one rank for all changes no bit of n_u / N.
        return reweighted(view, ranks_U / ranks_U.max())
