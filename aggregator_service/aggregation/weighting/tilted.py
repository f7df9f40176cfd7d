"""Weights that lean towards workers with a high loss, or away from them.

Paper   Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", ICLR 2021,
        arXiv:2007.01162 (TERM).
Rule    w_u = n_u exp(t F_u) / sum_v n_v exp(t F_v), with F_u the loss of worker u at the adapter
        that the round began from.
Bias    these are the weights of the gradients of the F_u in the gradient of
        (1 / t) log sum_u (n_u / N) exp(t F_u): t = 0 is the mean loss, t -> inf the largest,
        t -> -inf the smallest.
Needs   the metric loss_at_start with every update.
Cost    none; the server looks at no tensor.

Readings. The paper tilts gradients; here the updates of a whole round of local training take their
place, as FedAvg puts updates in the place of gradients. t < 0 is allowed: it makes little of
workers whose data the model does not fit. Losses that are not finite give n_u / N.
test_tilted.py holds each of these.

Shape suffix: U clients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from aggregator_service.aggregation.weighting.facts import metric, reweighted
from fedlora.errors import FedLoraError, Reason

__all__ = ["Tilted"]

_METRIC = "loss_at_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tilted:
    """w_u in proportion to examples times the exponential of the loss."""

    tilt: float = 1.0
    """t: above 0 for the worst-off workers, below 0 against outliers, 0 for the data weights"""

    name: ClassVar[str] = "tilted"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = (_METRIC,)

    def __post_init__(self) -> None:
        if not math.isfinite(self.tilt):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, f"tilted weights: expected a finite tilt, got {self.tilt}"
            )

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        tilted_U = self.tilt * metric(view, _METRIC, rule=self.name)
        # Only differences of losses count; the largest exponent is 0, so that none overflows.
        return reweighted(view, (tilted_U - tilted_U.max()).exp())
