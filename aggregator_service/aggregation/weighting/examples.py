"""Weights by the number of examples, or equal ones.

Source  McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", 2017, arXiv:1602.05629: w_u = n_u / sum_v n_v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from fedlora.errors import FedLoraError, Reason

__all__ = ["NumExamples", "Uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumExamples:
    """w_u in proportion to the examples an update was trained on."""

    name: ClassVar[str] = "num_examples"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = ()

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        counts_U = torch.tensor([u.num_examples for u in view.updates], dtype=torch.float64)
        if not float(counts_U.sum()) > 0:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"none of the {len(counts_U)} updates has a positive weight: "
                f"{', '.join(u.worker for u in view.updates)}",
            )
        return Weights(values_U=counts_U / counts_U.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """w_u = 1 / U for every update that was trained on any example."""

    name: ClassVar[str] = "uniform"
    sees_updates: ClassVar[bool] = False
    required_metrics: ClassVar[tuple[str, ...]] = ()

    def weigh(self, view: WeightingView) -> Weights:
        """See `base.WeightingRule`."""
        count = len(view.updates)
        return Weights(values_U=torch.full((count,), 1 / count, dtype=torch.float64))
