"""Weights that the server learns, a step each round, from where the updates point.

Paper   Shi, Zhao, Zhang, Zhou, Guo, Chang, "FedAWA: Adaptive Optimization of Aggregation Weights in
        Federated Learning Using Client Vectors", CVPR 2025, arXiv:2503.15842.
Rule    w = softmax(l), with a logit l_u per worker, kept from round to round. After the weights of
        the round are taken, one step of a fresh Adam on
            L(w) = sum_u w_u (1 - cos(S_u, P_u)) + sum_u w_u |X_u - sum_v w_v X_v|
        S_u what worker u was given, P_u what it sent, X_u = P_u - S_u.
Needs   nothing of workers; the server looks at each update.
Cost    O(U^2) on inner products, beside `geometry.cohort_geometry`.

Readings. The paper's vectors are parameters. Ours are the products B A of the whole adapter: the
cosine of factors is that of their common start, and weights must not depend on how a product is
factored. A first Adam step is lr g / (|g| + 1e-8) whatever its betas are, so they are no options.
Logits begin as the data fractions n_u / N, as published, not as their logarithms: the first
weights are then nearly equal. `first_weights` = data begins at n_u / N. N is the sum over the
cohort in which a worker first appears, where the paper knows all clients; who is absent keeps
its logit. A start of zero has no direction: all cosines are 0. The published alternative
to the cosine, a mean squared distance, is left out: it weighs the two terms by the number of
parameters. test_fedawa.py holds each of these.

What to expect. With lr = 1e-3 a logit moves by at most 1e-3 a round. L vanishes in its second term
wherever one weight is 1: larger steps end with one worker having nearly all.

Gradient. With C_uv = <X_u - m, X_v - m>, m = sum_v w_v X_v and n_u = sqrt(C_uu), but for a term
that is the same for all u and is lost in the softmax,
    dL/dw_u = 1 - cos_u + n_u - sum_v C_uv w_v / n_v,    dL/dl_u = w_u (dL/dw_u - <w, dL/dw>).

Shape suffix: U clients.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import CohortGeometry, WeightingView, Weights
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.errors import FedLoraError, Reason

__all__ = ["FedAWA", "FirstWeights"]

_LOGIT = "logit."
_ADAM_EPS = 1e-8
_ROUNDING = 100 * torch.finfo(torch.float64).eps
"""of inner products, relative to the largest: a few eps each, and some for large layers"""


class FirstWeights(enum.StrEnum):
    """Where a worker's logit begins."""

    PUBLISHED = "published"
    """n_u / N: nearly equal weights"""
    DATA = "data"
    """log n_u: the data weights"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAWA:
    """Softmax of logits that move towards updates that agree."""

    learning_rate: float = 1e-3
    """largest change of a logit in one round; 0 keeps the first weights"""
    first_weights: FirstWeights = FirstWeights.PUBLISHED
    """published: logits begin at n_u / N, nearly equal weights; data: at the data weights"""

    name: ClassVar[str] = "fedawa"
    sees_updates: ClassVar[bool] = True
    required_metrics: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.learning_rate < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"fedawa: expected a finite learning_rate >= 0, got {self.learning_rate}",
            )

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        first_U = self._first_logits(view)
        names = [_LOGIT + update.worker for update in view.updates]
        logits_U = torch.stack(
            [view.state.get(name, first) for name, first in zip(names, first_U, strict=True)]
        )
        weights_U = logits_U.softmax(0)
        gradient_U = _gradient(weights_U, view.geometry())
        step_U = self.learning_rate * gradient_U / (gradient_U.abs() + _ADAM_EPS)
        moved = dict(zip(names, (logits_U - step_U).unbind(), strict=True))
        return Weights(
            values_U=weights_U,
            state={**view.state, **moved},
            measurements={"largest_weight": float(weights_U.max())},
        )

    def _first_logits(self, view: WeightingView) -> Tensor:
        fractions_U = NumExamples().weigh(view).values_U
        if self.first_weights is FirstWeights.PUBLISHED:
            return fractions_U
        # Not of the fractions: cohorts with another N would begin at other heights.
        counts_U = torch.tensor([u.num_examples for u in view.updates], dtype=torch.float64)
        return counts_U.log()


def _gradient(weights_U: Tensor, geometry: CohortGeometry) -> Tensor:
    """dL/dl of the module docstring."""
    increments_UU = geometry.increments_UU
    mean_U = increments_UU @ weights_U
    centred_UU = increments_UU - mean_U[:, None] - mean_U[None, :] + weights_U @ mean_U
    squares_U = centred_UU.diagonal()
    # Adam would make a full step of the rounding errors of updates that are all the same.
    noise = _ROUNDING * increments_UU.diagonal().max()
    apart_U = squares_U > noise
    norms_U = torch.where(apart_U, squares_U, 0.0).sqrt()
    # |x| has no gradient at 0; the one of least norm there is 0.
    pull_U = torch.where(apart_U, weights_U / norms_U, 0.0)
    by_weight_U = 1 - _cosines(geometry) + norms_U - centred_UU @ pull_U
    return weights_U * (by_weight_U - weights_U @ by_weight_U)


def _cosines(geometry: CohortGeometry) -> Tensor:
    """Between what each worker was given and what it sent; 0 where either is zero."""
    lengths_U = geometry.start_norms_U * geometry.products_UU.diagonal().clamp(min=0).sqrt()
    return torch.where(lengths_U > 0, geometry.start_U / lengths_U, 0.0)
