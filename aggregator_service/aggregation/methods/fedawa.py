"""FedAWA: the factor mean, with weights that the server learns from round to round.

Paper   Shi, Zhao, Zhang, Zhou, Guo, Chang, "FedAWA: Adaptive Optimization of Aggregation Weights in
        Federated Learning Using Client Vectors", CVPR 2025, arXiv:2503.15842.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u,  w = softmax(l); each round moves the logits l by one
        step towards workers that stay near the adapter they were given and near each other.
Bias    as FedIT, with these weights: T too is meant with them.
Needs   one rank for the whole cohort; the server sees every update.
Cost    as FedIT, and the inner products of all updates: 5 R^2 (D + K) flops per module, R the sum
        of ranks.

Readings. The objective and what it is taken over are those of the weighting rule `fedawa`, which
any other method takes as well. test_fedawa.py: FedIT under that rule, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.weighting.fedawa import FedAWA as AdaptiveWeights
from aggregator_service.aggregation.weighting.fedawa import FirstWeights

__all__ = ["FedAWA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAWA(FedIT):
    """Factor mean with learnt weights."""

    learning_rate: float = 1e-3
    """largest change of a logit in one round; 0 keeps the first weights"""
    first_weights: FirstWeights = FirstWeights.PUBLISHED
    """published: logits begin at n_u / N, nearly equal weights; data: at the data weights"""

    name: ClassVar[str] = "fedawa"
    about: ClassVar[About] = About(
        title="FedAWA",
        paper="Shi et al. 2025, arXiv:2503.15842",
        exactness="wrong by the covariance of the factors",
        cost="5R^2(d+k)",
        needs="one rank for the cohort; its own state",
        choose="many rounds, and workers whose updates disagree",
    )

    def __post_init__(self) -> None:
        self._weights()

    @property
    def weighting(self) -> AdaptiveWeights:
        """The learnt weights."""
        return self._weights()

    def _weights(self) -> AdaptiveWeights:
        return AdaptiveWeights(learning_rate=self.learning_rate, first_weights=self.first_weights)
