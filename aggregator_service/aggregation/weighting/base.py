"""What a weighting rule is: a cohort's facts in, one weight per update out.

Shape suffix: U clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

__all__ = [
    "CohortGeometry",
    "UpdateFacts",
    "WeightingRule",
    "WeightingView",
    "Weights",
    "normalised",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFacts:
    """What came with an update, besides its tensors."""

    worker: str
    num_examples: float
    """or whatever weight the update was given where there are no examples to count"""
    rank: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CohortGeometry:
    """Inner products of whole adapters: sums over modules of <B_u A_u, B_v A_v>, float64."""

    products_UU: Tensor
    """of the clients' products with each other"""
    increments_UU: Tensor
    """of B_u A_u - (what client u was given), free of cancellation; of the products themselves
    where it is unknown what they were given"""
    start_U: Tensor
    """of each product with what that client was given; zeros where that is unknown"""
    start_norms_U: Tensor
    """Frobenius norm of what each client was given"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightingView:
    """A cohort as a weighting rule sees it, sorted by worker."""

    updates: tuple[UpdateFacts, ...]
    geometry: Callable[[], CohortGeometry]
    """computed when it is asked for: a pass over all factors"""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """what the rule returned in the round before"""
    module_states: Callable[[str], Mapping[str, Tensor]] = lambda _: {}
    """one tensor of the method's state, by its name, of every module that has it; read when it
    is asked for"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """What a rule decided."""

    values_U: Tensor
    """float64 on the CPU, none negative, summing to 1"""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """kept for the next round"""
    measurements: Mapping[str, float] = field(default_factory=dict)


class WeightingRule(Protocol):
    """One way of weighting; a frozen dataclass of its options."""

    name: ClassVar[str]
    """registry name"""
    sees_updates: ClassVar[bool]
    """whether it looks at the updates' tensors"""
    required_metrics: ClassVar[tuple[str, ...]]
    """metrics every update must come with"""

    def weigh(self, view: WeightingView) -> Weights:
        """The weight of each update.

        Raises:
            FedLoraError: INVALID_ARGUMENT where no update can have a positive weight.
        """
        ...


def normalised(values_U: Tensor, fallback_U: Tensor) -> Tensor:
    """Values over their sum, or the fallback likewise where the values are all 0 or not finite."""
    values = values_U.to(torch.float64)
    if not bool(torch.isfinite(values).all()) or float(values.sum()) <= 0:
        values = fallback_U.to(torch.float64)
    return values / values.sum()
