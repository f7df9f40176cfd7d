"""Weights by how little of the server's adapter a worker's rank left out.

Paper   Peng, Zeng, Li, Li, Chen, Wang, "FedHL: Federated Learning for Heterogeneous Low-Rank
        Adaptation via Unbiased Aggregation", 2025, arXiv:2505.18494.
Rule    e_u = sum over modules of sum_{j > r_u} s_j^2, with s_j the singular values of the server's
        delta D and r_u the rank of worker u: the squared error of the start that it was given.
            data_aware   minimises sum_u p_u^2 e_u + mu |p - w|^2 on the simplex:
                         p_u = (mu w_u + nu) / (e_u + mu),
                         nu = (1 - sum_v mu w_v / (e_v + mu)) / sum_v 1 / (e_v + mu) >= 0
            power        minimises sum_u p_u^2 (e_u^c + eps): p_u ~ 1 / (e_u^c + eps), c = 1 or 2
            data         p_u = w_u = n_u / sum_v n_v
        All e_u = 0, as in the first round, gives w.
Needs   a method that keeps the singular values of its delta as its state: `fedhl`.
Cost    reads the state of every module; nothing is asked of workers.

Readings. We have the paper's weights at second hand, as 1 / (r^2 + eps) over their sum. With r
the norm of the truncation error that is `power` = 1, which is also what Cauchy and Schwarz give for
the drift term |sum_u p_u b_u|^2 with |b_u| <= L sqrt(e_u); with r its square, as the paper's Eq. 8
was quoted to us, it is `power` = 2. Neither is the default: both ignore w_u, so that another
objective than sum_u w_u F_u is minimised, and both give nearly all weight to the largest rank.
`data_aware` is ours, with mu = data_pull * mean(e): equal e_u give (w_u + 1/U) / 2, and a large
data_pull gives w. eps is relative, (eps_rel * mean(e))^c: the absolute 1e-6 of a re-implementation
would mean something else for every size of adapter. test_truncation_error.py holds each of these.

Measured in every round, over all modules and relative to |D|:

    truncation_error_rank_4     sqrt(e_u) for the workers of that rank; likewise for every rank
    largest_truncation_error    the largest of them
    start_bias                  |sum_u p_u (D - D_u)|, D_u what worker u was given but for rounding:
                                what averaging the products would lose; on quadratics of one
                                curvature, and but for that factor, the drift of the gradient itself
    drift_bound                 sqrt(U sum_u p_u^2 e_u), never below start_bias
    drift_bound_at_data_weights the same for w
    moved_from_data_weights     sum_u |p_u - w_u| / 2

Shape suffixes: U clients, N singular values.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.errors import FedLoraError, Reason

__all__ = ["VALUES", "Form", "TruncationError"]

VALUES = "values"
"""name of the singular values in a module's state, descending"""


class Form(enum.StrEnum):
    """What the weights minimise."""

    DATA_AWARE = "data_aware"
    POWER = "power"
    DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncationError:
    """Less weight for workers that started further from the server's adapter."""

    form: Form = Form.DATA_AWARE
    """data_aware: truncation errors against the distance from the data weights; power: inverse
    power of the truncation error; data: the data weights"""
    power: int = 1
    """for power: 1 for the inverse squared error, 2 for its square, as the paper's Eq. 8 reads"""
    eps_rel: float = 1e-2
    """for power: errors below this share of the mean error count as equally small"""
    data_pull: float = 1.0
    """for data_aware: weight of the distance from the data weights, relative to the mean error"""

    name: ClassVar[str] = "truncation_error"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.power not in (1, 2) or not self.eps_rel > 0 or not self.data_pull > 0:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "weights by truncation error: expected power 1 or 2, eps_rel > 0 and "
                f"data_pull > 0, got {self.power}, {self.eps_rel} and {self.data_pull}",
            )

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        data_U = NumExamples().weigh(view).values_U
        states = view.module_states(VALUES).values()
        values = [values_N.to("cpu", torch.float64) for values_N in states]
        ranks = [update.rank for update in view.updates]
        errors_U = _tail_squares(values, ranks)
        # e_u = 0 for all leaves nothing to weigh by.
        weighs = self.form is not Form.DATA and bool(errors_U.any())
        weights_U = self._minimiser(errors_U, data_U) if weighs else data_U
        # Where D is zero so is what it lacks.
        whole = math.sqrt(float(_tail_squares(values, [0]))) or 1.0
        by_rank = dict(zip(ranks, errors_U.sqrt().tolist(), strict=True))
        return Weights(
            values_U=weights_U,
            measurements={
                **{f"truncation_error_rank_{r}": e / whole for r, e in sorted(by_rank.items())},
                "largest_truncation_error": max(by_rank.values()) / whole,
                "start_bias": _start_bias(values, ranks, weights_U) / whole,
                "drift_bound": _drift_bound(errors_U, weights_U) / whole,
                "drift_bound_at_data_weights": _drift_bound(errors_U, data_U) / whole,
                "moved_from_data_weights": float((weights_U - data_U).abs().sum()) / 2,
            },
        )

    def _minimiser(self, errors_U: Tensor, data_U: Tensor) -> Tensor:
        # Only ratios of errors count; in this unit no power of them under- or overflows.
        errors_U = errors_U / errors_U.max()
        if self.form is Form.POWER:
            eps = (self.eps_rel * errors_U.mean()) ** self.power
            inverse_U = 1 / (errors_U**self.power + eps)
            return inverse_U / inverse_U.sum()
        mu = self.data_pull * errors_U.mean()
        inverse_U = 1 / (errors_U + mu)
        # 1 - sum_v mu w_v / (e_v + mu), with the subtraction done.
        missing = (data_U * errors_U * inverse_U).sum()
        weights_U = (mu * data_U + missing / inverse_U.sum()) * inverse_U
        return weights_U / weights_U.sum()


def _tail_squares(values: list[Tensor], ranks: list[int]) -> Tensor:
    """e_u: what lies beyond each rank, over all modules."""
    squares = [values_N.square() for values_N in values]
    errors = [sum(float(squares_N[rank:].sum()) for squares_N in squares) for rank in ranks]
    return torch.tensor(errors, dtype=torch.float64)


def _drift_bound(errors_U: Tensor, weights_U: Tensor) -> float:
    """sqrt(U sum_u p_u^2 e_u), by Cauchy and Schwarz."""
    return math.sqrt(len(errors_U) * float((weights_U.square() * errors_U).sum()))


def _start_bias(values: list[Tensor], ranks: list[int], weights_U: Tensor) -> float:
    """|sum_u p_u (D - D_u)|: component j is missing for all workers of rank j or less."""
    ranks_U = torch.tensor(ranks)
    squares = []
    for values_N in values:
        lacks_UN = ranks_U[:, None] <= torch.arange(len(values_N))
        missing_N = (lacks_UN * weights_U[:, None]).sum(dim=0)
        squares.append(float((missing_N * values_N).square().sum()))
    return math.sqrt(math.fsum(squares))
