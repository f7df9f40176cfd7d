"""What an aggregation method is: one module's factors and weights in, one adapter's out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

__all__ = ["Aggregator", "ModuleResult", "Publication", "active_cohort", "uniform_rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What happens to a result after aggregation: one division of B, then one rounding.

    A method that promises to be no worse than another has to compare what readers will get.
    """

    dtype: torch.dtype
    """element type of the published file"""
    scaling: float = 1.0
    """s with which readers serve it; lora_B is B / s"""

    def stored(self, factors: LoraFactors) -> tuple[Tensor, Tensor]:
        """lora_A and lora_B as the file holds them."""
        lora_b = factors.b_DR.to(torch.float64) / self.scaling
        return factors.a_RK.to(self.dtype), lora_b.to(self.dtype)

    def read_back(self, factors: LoraFactors) -> LoraFactors:
        """The float64 factors a reader of the file has."""
        lora_a, lora_b = self.stored(factors)
        return LoraFactors.fold(lora_a.to(torch.float64), lora_b.to(torch.float64), self.scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleResult:
    """One module of the aggregate, with what the method measured on the way."""

    factors: LoraFactors
    measurements: Mapping[str, float] = field(default_factory=dict)
    """finite numbers by name"""


class Aggregator(Protocol):
    """An aggregation method, stated on one module.

    A method is a frozen dataclass whose fields are its options. It must not depend on the
    order of the cohort but through the last bits of sums (the driver sorts by worker), must
    treat weight 0 as absence, and returns factors in the cohort's dtype after computing in
    float64.
    """

    name: ClassVar[str]
    """registry name"""
    mixed_ranks: ClassVar[bool]
    """whether members of a cohort may differ in rank"""
    keeps_basis: ClassVar[bool]
    """whether the result's components are those of the cohort, so that optimiser state of the
    factors stays meaningful over a round"""

    def aggregate_module(
        self,
        cohort: Sequence[LoraFactors],
        weights_U: Tensor,
        *,
        rank: int,
        generator: torch.Generator | None = None,
        publication: Publication | None = None,
    ) -> ModuleResult:
        """Combines the cohort's products into one of the given rank.

        Args:
            cohort: the same module of every client, scale folded in.
            weights_U: >= 0, with a positive sum; need not sum to 1.
            rank: rank of the result.
            generator: on the CPU, for random starts and for filling spare components; None
                takes one seeded with 0.
            publication: how the result will be stored; None: in the cohort's dtype, scale 1.

        Raises:
            FedLoraError: INVALID_ARGUMENT for weights or shapes that make no cohort,
                UNSUPPORTED_METHOD for ranks that this method cannot combine.
        """
        ...


def active_cohort(
    cohort: Sequence[LoraFactors], weights_U: Tensor
) -> tuple[list[LoraFactors], Tensor]:
    """The members of positive weight, and their weights in float64, summing to 1.

    Weight 0 is absence: left in, a client would still span directions that a surrogate uses.
    """
    weights = weights_U.detach().to("cpu", torch.float64)
    if weights.ndim != 1 or len(weights) != len(cohort):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"expected {len(cohort)} weights, got a tensor of shape {list(weights.shape)}",
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not weights.any():
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"weights must be finite, none negative and not all zero, got {weights.tolist()}",
        )
    members = [f for f, w in zip(cohort, weights.tolist(), strict=True) if w > 0]
    first = members[0]
    for other in members[1:]:
        mine, theirs = (
            (f.out_features, f.in_features, f.dtype, f.a_RK.device) for f in (first, other)
        )
        if mine != theirs:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "one module must have one shape, dtype and device in the whole cohort, got "
                f"{mine[0]}x{mine[1]} {mine[2]} on {mine[3]} and "
                f"{theirs[0]}x{theirs[1]} {theirs[2]} on {theirs[3]}",
            )
    weights = weights[weights > 0]
    return members, weights / weights.sum()


def uniform_rank(name: str, cohort: Sequence[LoraFactors], rank: int, *, mixed: bool) -> int:
    """The rank of a combination of the cohort's factors, which `rank` may exceed but not undercut.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for mixed ranks where the method has none, and for a
            result of lower rank than the cohort's.
    """
    ranks = sorted({f.rank for f in cohort})
    if len(ranks) > 1 and not mixed:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} needs one rank for the whole cohort, got {ranks}",
            hint="Use flora_na or optimal, which take mixed ranks",
        )
    if rank < ranks[-1]:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} combines factors component by component and cannot publish rank {rank} "
            f"from updates of rank {ranks[-1]}",
            hint="Use optimal, which truncates to any rank",
        )
    return ranks[-1]
