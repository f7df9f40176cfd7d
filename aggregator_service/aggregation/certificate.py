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

Exact (`exact_figures`), but for cohorts whose ranks add up to far more than a layer's own:
estimates then (`estimated_figures`), and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aggregator_service.aggregation.estimated_figures import EstimatedFigures
from aggregator_service.aggregation.exact_figures import ExactFigures
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.singular_values import Values
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import is_estimated, product_norm, qr_core_svd
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
    is_estimate: bool = False

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
            is_estimate=self.is_estimate,
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
    first = cohort.members[0]
    ranks = sum(f.rank for f in cohort.members)
    is_large = target is None and is_estimated(
        ranks, first.out_features, first.in_features, rank=rank
    )
    if target is None:
        kind = EstimatedFigures if is_large else ExactFigures
        figures = kind(cohort, published.factors, added)
        ideal, change, error = figures.ideal(), figures.change(), figures.error()
        lost, values = figures.lost_by_the_mean(), figures.values
    else:
        start = cohort.start
        ideal = product_norm(target.b_DR, target.a_RK)
        change = _distance([start.factors], target) if start else math.nan
        error = _distance([published.factors, *added], target)
        lost = ExactFigures(cohort, published.factors, ()).lost_by_the_mean()
        values = Values(qr_core_svd([target.b_DR], [target.a_RK], rank=1).values_N)
    return ModuleNorms(
        ideal=ideal,
        change=change,
        error=error,
        factor_mean=lost,
        bound=values.bound(rank),
        values_sum=values.total(),
        values_squares=values.squares(),
        rank=rank,
        spectrum=tuple(values.leading_N[: _SPECTRUM_RANKS * rank].tolist()),
        is_estimate=is_large,
    )


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
