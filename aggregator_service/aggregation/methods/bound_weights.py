"""Bound weights: the factor mean, weighted by how loosely a worker's loss is bounded.

Paper   Xu, Cao, Tsang, Kwok, "Aggregation Weighting of Federated Learning via Generalization Bound
        Estimation", 2023, arXiv:2311.05936.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u,  w_u ~ n_u / g_u or ~ n_u g_u, with g_u the gap
        between an upper and a lower bound on the second moment of the loss under shifted data.
Bias    as FedIT, with these weights: T too is meant with them.
Needs   one rank for the whole cohort; the metrics score_mean and score_variance with every update:
        mean and variance of the squared loss, clipped at score_bound, over the worker's data.
Cost    as FedIT; one evaluation per worker and round, two numbers more per update.

Readings. We have the paper's abstract: the bounds, and whether a wide gap counts for or against a
worker, are readings, told in the weighting rule `bound_gap`, which any other method takes as well.
The worker is told score_bound with the round. test_bound_weights.py: FedIT under that rule, bit
for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.weighting.bound_gap import BoundGap, Direction
from fedlora.runs.plan import RoundPlan

__all__ = ["BoundWeights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundWeights(FedIT):
    """Factor mean, weighted by the gap of generalisation bounds."""

    radius: float = 0.1
    """rho, the largest Hellinger distance of the shifted data; 0 for the data weights"""
    score_bound: float = 1.0
    """M, at which workers clip the squared loss"""
    direction: Direction = Direction.INVERSE
    """inverse: a narrow gap gives a large weight; proportional: a wide one does"""

    name: ClassVar[str] = "bound_weights"
    about: ClassVar[About] = About(
        title="Bound weights",
        paper="Xu et al. 2023, arXiv:2311.05936",
        exactness="wrong by the covariance of the factors",
        cost="2R(d+k)",
        needs="one rank for the cohort; mean and variance of every worker's squared loss",
        choose="workers' data are unequal in quality, and each can afford an evaluation per round",
    )

    def __post_init__(self) -> None:
        self._weights()

    @property
    def weighting(self) -> BoundGap:
        """By the gap of the bounds."""
        return self._weights()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """A and B are trained and sent; the worker clips its scores."""
        return (RoundPlan(settings={"score_bound": self.score_bound}),)

    def _weights(self) -> BoundGap:
        return BoundGap(radius=self.radius, score_bound=self.score_bound, direction=self.direction)
