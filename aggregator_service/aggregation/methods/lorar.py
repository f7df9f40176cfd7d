"""Lorar: the factor mean, with more weight for workers whose loss came down further.

Paper   Zhang, Liu, Lee, Su, Sun, "Federated Learning for Semantic Parsing: Task Formulation,
        Evaluation Setup, New Algorithms", ACL 2023, arXiv:2305.17221.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u,  w_u = n_u l_u / sum_v n_v l_v, with l_u the
        reduction of the training loss of worker u within the round.
Bias    as FedIT, with these weights: T too is meant with them.
Needs   one rank for the whole cohort; the metric loss_reduction with every update.
Cost    as FedIT; one number more per update.

Readings. The paper trains whole models, and has the weights under FedAvg, FedOpt and FedProx; the
factor mean is how FedIT carries FedAvg over to adapters. Any other method takes the same weights
by the weighting rule `loss_reduction`, which says what happens where no loss came down.
test_lorar.py: FedIT under that rule, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.weighting.loss_reduction import LossReduction

__all__ = ["Lorar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lorar(FedIT):
    """Factor mean, weighted by the reduction of the loss."""

    name: ClassVar[str] = "lorar"
    about: ClassVar[About] = About(
        title="Lorar",
        paper="Zhang et al. 2023, arXiv:2305.17221",
        exactness="wrong by the covariance of the factors",
        cost="2R(d+k)",
        needs="one rank for the cohort; the loss reduction of every update",
        choose="workers differ in how much they still have to learn",
    )

    @property
    def weighting(self) -> LossReduction:
        """By examples times the reduction of the loss."""
        return LossReduction()
