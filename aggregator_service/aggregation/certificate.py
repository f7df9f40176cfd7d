"""What an aggregation lost, measured on the adapter as it was published.

Per module, with T = sum_u w_u B_u A_u, the published product B A as its readers rebuild it
(rounded, with its serving scale) and q its rank:

    relative_error      |B A - T| / |T|
    factor_mean_error   |B~ A~ - T| / |T|          what plain averaging would have lost
    lower_bound         sqrt(sum_{i>q} s_i(T)^2) / |T|           Eckart and Young: the least
    gap_closed          (factor_mean^2 - relative^2) / (factor_mean^2 - lower_bound^2)
    ..._vs_change       the same three numerators over |T - T_prev|

|T| grows over the rounds, so an error over |T| looks ever better while the round's learning is
being lost; over |T - T_prev|, T_prev the product the workers started from, 1 means that the
error is as large as everything learnt in the round.

All differences are taken in coordinates near the adapter that the workers started from, from one
pair of Gram matrices (`cohort_frame`). What is too small for squares is answered again: norms in
centred coordinates (`centred`), so an error of 1e-8 is as accurate as one of 0.1, and the bound by
the QR core, whose small singular values are right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator_service.aggregation.base import GlobalModule, ModuleCohort
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.cohort_frame import CohortFrame
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import GRAM_TAIL, gram_core_values, product_norm, qr_core_svd
from fedlora.runs.report import CertificateEntry

__all__ = ["ModuleNorms", "measure"]

_SPECTRUM_RANKS = 4
"""singular values that are reported, as a multiple of the adapter's rank: enough to see what a
higher rank would have kept"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNorms:
    """The numerators and denominators of one module, or of all: squares may be added."""

    ideal: float
    change: float
    error: float
    factor_mean: float
    bound: float
    values_sum: float
    """sum of the singular values of T"""
    values_squares: float
    rank: int
    spectrum: tuple[float, ...] = ()

    def entry(
        self, module: str, *, roundoff: float, measurements: Mapping[str, float]
    ) -> CertificateEntry:
        """The ratios. `roundoff` is the published element type's unit roundoff."""
        avoidable = self.factor_mean**2 - self.bound**2
        # Rounding alone moves a product by about this much, whatever the method.
        measurable = avoidable > (roundoff * self.ideal) ** 2
        squares = self.values_squares
        return CertificateEntry(
            module=module,
            ideal_norm=self.ideal,
            change_norm=self.change,
            relative_error=_ratio(self.error, self.ideal),
            factor_mean_error=_ratio(self.factor_mean, self.ideal),
            lower_bound=_ratio(self.bound, self.ideal),
            relative_error_vs_change=_ratio(self.error, self.change),
            factor_mean_error_vs_change=_ratio(self.factor_mean, self.change),
            lower_bound_vs_change=_ratio(self.bound, self.change),
            gap_closed=(self.factor_mean**2 - self.error**2) / avoidable
            if measurable
            else math.nan,
            rank=self.rank,
            effective_rank=self.values_sum**2 / squares if squares > 0 else 0.0,
            measurements=dict(measurements),
            spectrum=self.spectrum,
        )


def measure(
    cohort: ModuleCohort, *, published: GlobalModule, target: LoraFactors | None = None
) -> ModuleNorms:
    """The norms of one module.

    Args:
        cohort: the updates, with the start of the round where it is known; a member of lower
            rank had the first components of it. Without a start the change is NaN.
        published: as rounded and read back. What it has added to the base model since the start
            counts as part of it.
        target: what the method means by the ideal aggregate, as factors; None is T.
    """
    rank, added = published.factors.rank, _base_change(cohort.start, published)
    if target is None:
        figures = _Figures(cohort, published.factors, added)
        ideal, change, error = figures.ideal(), figures.change(), figures.error()
        lost, values_N = figures.lost_by_the_mean(), figures.values(rank)
    else:
        start = cohort.start
        ideal = product_norm(target.b_DR, target.a_RK)
        change = _distance([start.factors], target) if start else math.nan
        error = _distance([published.factors, *added], target)
        lost = _Figures(cohort, published.factors, ()).lost_by_the_mean()
        values_N = qr_core_svd([target.b_DR], [target.a_RK], rank=1).values_N
    return ModuleNorms(
        ideal=ideal,
        change=change,
        error=error,
        factor_mean=lost,
        bound=float(torch.linalg.vector_norm(values_N[rank:])),
        values_sum=float(values_N.sum()),
        values_squares=float(values_N.square().sum()),
        rank=rank,
        spectrum=tuple(values_N[: _SPECTRUM_RANKS * rank].tolist()),
    )


class _Figures:
    """What is measured of one module: by Gram matrices, and otherwise where those cannot tell."""

    def __init__(
        self, cohort: ModuleCohort, published: LoraFactors, added: Sequence[LoraFactors]
    ) -> None:
        self._cohort, self._published, self._added = cohort, published, added
        start = cohort.start.factors if cohort.start else None
        widest = max(cohort.members, key=lambda f: f.rank)
        self._origin = start if start is not None and start.rank >= widest.rank else widest
        self._start = start
        more = (published, *added)
        self._frame = CohortFrame(cohort.members, cohort.weights_U, self._origin, more)

    @functools.cached_property
    def _centred(self) -> CentredCohort:
        cohort = self._cohort
        return CentredCohort.of(cohort.members, cohort.weights_U, reference=self._origin)

    def ideal(self) -> float:
        """|T|."""
        norm = self._frame.norm(self._frame.ideal())
        return self._centred.ideal_norm() if norm is None else norm

    def error(self) -> float:
        """Of what was published, with what it added to the base model."""
        apart_NN = -self._frame.ideal()
        for i in range(1 + len(self._added)):
            apart_NN += self._frame.product(i)
        norm = self._frame.norm(apart_NN)
        return self._centred.error_of(self._published, self._added) if norm is None else norm

    def lost_by_the_mean(self) -> float:
        """Error of the product of the factor means."""
        norm = self._frame.norm(self._frame.lost_by_the_mean())
        return self._centred.factor_mean_error() if norm is None else norm

    def change(self) -> float:
        """|T - T_prev|; NaN without a start."""
        if self._start is None:
            return math.nan
        known = self._start is self._origin
        norm = self._frame.norm(self._frame.change()) if known else None
        ranks = [f.rank for f in self._cohort.members]
        return self._centred.change_from(self._start, ranks) if norm is None else norm

    def values(self, rank: int) -> Tensor:
        """The singular values of T, descending, right in what lies beyond the rank."""
        cohort, first = self._cohort, self._cohort.members[0]
        ranks = torch.tensor([f.rank for f in cohort.members])
        weights_R = cohort.weights_U.repeat_interleave(ranks)
        values_R = gram_core_values(*self._frame.gram_of_clients(), weights_R)
        # More values than T can have are rounding noise of the Gram matrices.
        values_N = values_R[: min(first.out_features, first.in_features)]
        tail, whole = (float(torch.linalg.vector_norm(v)) for v in (values_N[rank:], values_N))
        if tail > GRAM_TAIL * whole:
            return values_N
        stack = cohort.stack()
        return qr_core_svd([stack.b_DR], [stack.a_RK], rank=1).values_N


def _base_change(start: GlobalModule | None, published: GlobalModule) -> tuple[LoraFactors, ...]:
    """What the round has added to the base model, as factors whose products are to be summed."""
    added = [] if published.base is None else [published.base]
    if start is not None and start.base is not None:
        added.append(LoraFactors(start.base.a_RK, -start.base.b_DR))
    return tuple(added)


def _distance(parts: Sequence[LoraFactors], target: LoraFactors) -> float:
    """|sum of the parts' products - the target's|."""
    return product_norm(
        torch.cat([*(f.b_DR for f in parts), -target.b_DR], dim=1),
        torch.cat([*(f.a_RK for f in parts), target.a_RK]),
    )


def _ratio(numerator: float, denominator: float) -> float:
    """0 / 0 is 0: nothing was there, and nothing was lost."""
    if denominator == 0:
        return 0.0 if numerator == 0 else math.inf
    return numerator / denominator
