"""Weights by how far local training brought the loss down.

Paper   Zhang, Liu, Lee, Su, Sun, "Federated Learning for Semantic Parsing: Task Formulation,
        Evaluation Setup, New Algorithms", ACL 2023, arXiv:2305.17221 (Lorar).
Rule    w_u = n_u l_u / sum_v n_v l_v, with l_u the reduction of the training loss of worker u
        within the round.
Needs   the metric loss_reduction with every update.
Cost    none. The server looks at no tensor, and a worker could multiply its update by n_u l_u
        itself.

Readings. l_u is first minus last in one account of the method, largest minus smallest logged loss
in another: a worker sends one number, and which it is is decided there. A loss that rose counts
as no reduction, l_u = 0, so that no weight is negative. Where no loss fell, or one is not a
number, the weights are n_u / N: the public code divides by zero there. Loss curves are noisy, and
the metric is the worker's own claim. test_loss_reduction.py holds each of these.

Shape suffix: U clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from aggregator_service.aggregation.weighting.facts import metric, reweighted

__all__ = ["LossReduction"]

_METRIC = "loss_reduction"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReduction:
    """w_u in proportion to examples times the reduction of the loss."""

    name: ClassVar[str] = "loss_reduction"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = (_METRIC,)

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        reductions_U = metric(view, _METRIC, rule=self.name).clamp(min=0)
        # In this unit equal reductions are 1, and leave n_u as it is. 0 / 0 is not finite, which
        # gives n_u as well.
        return reweighted(view, reductions_U / reductions_U.max())
