"""Weights by how far apart the bounds on a worker's loss under shifted data are.

Paper   Xu, Cao, Tsang, Kwok, "Aggregation Weighting of Federated Learning via Generalization Bound
        Estimation", 2023, arXiv:2311.05936.
Rule    Of a score in [0, M] with mean E and variance V on the worker's data, the mean under any
        data within Hellinger distance rho lies in [E - d(E), E + d(M - E)], with
            d(x) = 2 s c sqrt(V) + s^2 (x - V / x),  or x where c x <= s sqrt(V),
            c = 1 - rho^2, s = sqrt(1 - c^2).
        g_u = d(E) + d(M - E);  w_u ~ n_u / g_u (inverse) or ~ n_u g_u (proportional).
Needs   the metrics score_mean and score_variance with every update: one evaluation per round.
Cost    none; the server looks at no tensor.

Readings. Of the paper we have the abstract: upper and lower bounds of the second-order origin
moment under a shifted distribution, whose disagreement gives the weights. The bounds here are ours
to choose: those on the mean over a Hellinger ball of Weber et al., 2022, arXiv:2202.01679,
with the squared loss, clipped at M, for the score, so that its mean is the second moment of the
loss. E + d(M - E) = M - (c (M - E) - s sqrt(V))^2 / (M - E) shows where that bound reaches M, and
where it holds no longer: from there d(x) = x. "Bounds disagreements as the aggregation proportions"
would be weights in proportion to g_u alone, and make most of the workers with noisy data against
which the paper sets out; `inverse` is our default, not the paper's, and so is the factor n_u.
rho = 0 makes every gap 0 and gives n_u / N. A mean beyond [0, M] and a variance beyond E (M - E),
which no score in [0, M] has, are brought back. As a rule of another method it leaves M for
the workers' own configuration to say; `bound_weights` tells it them. test_bound_gap.py holds each
of these.

Shape suffix: U clients.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from aggregator_service.aggregation.weighting.facts import metric, reweighted
from fedlora.errors import FedLoraError, Reason

__all__ = ["BoundGap", "Direction"]

_MEAN, _VARIANCE = "score_mean", "score_variance"


class Direction(enum.StrEnum):
    """Whether a wide gap counts against a worker or for it."""

    INVERSE = "inverse"
    PROPORTIONAL = "proportional"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGap:
    """w_u by the gap between the bounds on a worker's score under shifted data."""

    radius: float = 0.1
    """rho, the largest Hellinger distance of the shifted data; 0 for the data weights"""
    score_bound: float = 1.0
    """M, the largest score; workers clip at it"""
    direction: Direction = Direction.INVERSE
    """inverse: a narrow gap gives a large weight; proportional: a wide one does"""

    name: ClassVar[str] = "bound_gap"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = (_MEAN, _VARIANCE)

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 1 or not 0 < self.score_bound < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "weights by bound gap: expected 0 <= radius <= 1 and a finite score_bound > 0, got "
                f"{self.radius} and {self.score_bound}",
            )

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        mean_U = metric(view, _MEAN, rule=self.name).clamp(0, self.score_bound)
        most_U = mean_U * (self.score_bound - mean_U)
        variance_U = metric(view, _VARIANCE, rule=self.name).clamp(min=0).minimum(most_U)
        gaps_U = self._shift(mean_U, variance_U)
        gaps_U = gaps_U + self._shift(self.score_bound - mean_U, variance_U)
        # Relative to the most favoured, equal gaps are 1 and leave n_u as it is. Gaps of 0 give
        # 0 / 0, which is not finite: n_u again.
        if self.direction is Direction.INVERSE:
            return reweighted(view, gaps_U.min() / gaps_U)
        return reweighted(view, gaps_U / gaps_U.max())

    def _shift(self, room_U: Tensor, variance_U: Tensor) -> Tensor:
        """How far the mean can move into the room on one side of it: d of the module docstring."""
        cosine = 1 - self.radius**2
        # 1 - c^2, with the subtraction done.
        sine = self.radius * (2 - self.radius**2) ** 0.5
        deviation_U = variance_U.sqrt()
        full_U = cosine * room_U <= sine * deviation_U
        shift_U = 2 * sine * cosine * deviation_U + sine**2 * (room_U - variance_U / room_U)
        return torch.where(full_U, room_U, shift_U)
