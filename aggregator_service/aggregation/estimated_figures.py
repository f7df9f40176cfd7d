"""Figures of a certificate for cohorts too large for R x R matrices: estimates.

T is known on a basis W of its rows (`fedlora.numerics.projection`) that holds its leading
components and the rows of every adapter it is compared with, A_i. So for any of these

    |T - B_i A_i|^2 = |T W - B_i A_i W|^2 + |T (I - W W^T)|^2

where the first term is exact and the second, common to all figures, is estimated by random signs
with a standard deviation of sqrt(1 / (32 n)) of itself for n equal singular values beside W: 1 %
for some 300, as a hundred workers leave. What is larger stays larger: the bound lies below every
error, and differences between errors are exact. The effective rank comes out too low, by up to a
third where the spectrum is flat.

Products run in float32 where the updates are. Where an error or the bound is too small for that it
is asked for again in float64.

Cost: 2 (D + K) R L flops for some L = 80 columns, and memory for these.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.singular_values import Values
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.stacked import block_product
from fedlora.numerics import Projection, projection

__all__ = ["EstimatedFigures"]

_CANCELLATION = 1e-3
"""share of |T| below which float32 has no three digits of a difference"""


class EstimatedFigures:
    """What is measured of one module. Arguments as `ExactFigures`."""

    def __init__(
        self, cohort: ModuleCohort, published: LoraFactors, added: Sequence[LoraFactors]
    ) -> None:
        self._cohort, self._published, self._added = cohort, published, added
        self._start = cohort.start.factors if cohort.start else None

    def ideal(self) -> float:
        """|T|."""
        return math.sqrt(self.values.squares())

    def error(self) -> float:
        """Of what was published, with what it added to the base model."""
        parts = [self._published, *self._added]
        whole = LoraFactors(
            torch.cat([f.a_RK.to(torch.float64) for f in parts]),
            torch.cat([f.b_DR.to(torch.float64) for f in parts], dim=1),
        )
        return self._distance(whole)

    def lost_by_the_mean(self) -> float:
        """Error of the product of the factor means."""
        return self._distance(self._mean)

    def change(self) -> float:
        """|T - T_prev|; NaN without a start."""
        if self._start is None:
            return math.nan
        # The mean of what the clients began with: the start's first components, by rank.
        given_R = torch.zeros(self._start.rank, dtype=torch.float64)
        for member, weight in zip(
            self._cohort.members, self._cohort.weights_U.tolist(), strict=True
        ):
            given_R[: member.rank] += weight
        start = self._start.to(torch.float64)
        return self._distance(LoraFactors(start.a_RK, start.b_DR * given_R.to(start.b_DR)))

    @property
    def values(self) -> Values:
        """Underestimates of the leading ones."""
        found = self._found(None)
        values = Values(found.values_M, found.missed_norm, found.missed_count)
        if values.bound(self._published.rank) >= _CANCELLATION * math.sqrt(values.squares()):
            return values
        found = self._found(torch.float64)
        return Values(found.small_values(), found.missed_norm, found.missed_count)

    @functools.cached_property
    def _mean(self) -> LoraFactors:
        return factor_mean(self._cohort.members, self._cohort.weights_U)

    @functools.cached_property
    def _projections(self) -> dict[torch.dtype | None, Projection]:
        return {}

    def _found(self, dtype: torch.dtype | None) -> Projection:
        """The projection, made in float64 on demand."""
        if dtype not in self._projections:
            near = [self._published.a_RK, self._mean.a_RK]
            if self._start is not None:
                near.append(self._start.a_RK)
            product = block_product(self._cohort.stack())
            rank = self._published.rank
            self._projections[dtype] = projection(product, rank=rank, near=near, dtype=dtype)
        return self._projections[dtype]

    def _distance(self, other: LoraFactors) -> float:
        near = self._found(None).distance(other.b_DR, other.a_RK)
        if near >= _CANCELLATION * self.ideal():
            return near
        return self._found(torch.float64).distance(other.b_DR, other.a_RK)
