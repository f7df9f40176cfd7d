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

All differences are taken in centred coordinates (`centred`), with the adapter the workers
started from as reference, so an error of 1e-8 is as accurate as one of 0.1. The bound comes
from the QR core, whose small singular values are right, and from the tail's own squares.

Whole-adapter figures are square roots of sums of squares over modules, numerator and
denominator apart; the effective rank is that of the block-diagonal operator; measurements are
means over the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.cohort_files import AdapterFile, CohortFiles, Contribution
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import qr_core_svd
from fedlora.runs.report import Certificate, CertificateEntry

__all__ = ["certify", "measure"]

_UNIT_ROUNDOFF = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}
"""largest relative error of rounding one number"""


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
        )


def measure(
    cohort: Sequence[LoraFactors],
    weights_U: torch.Tensor,
    *,
    published: LoraFactors,
    start: LoraFactors | None,
) -> ModuleNorms:
    """The norms of one module.

    Args:
        cohort: members of positive weight, folded.
        weights_U: float64, summing to 1.
        published: as rounded and read back, folded.
        start: what the members started from, folded; of which a member of lower rank had the
            first components. None: unknown, and the change is NaN.
    """
    centred = CentredCohort.of(cohort, weights_U, reference=start)
    weighted = [f.b_DR * w for f, w in zip(cohort, weights_U.tolist(), strict=True)]
    values_N = qr_core_svd(weighted, [f.a_RK for f in cohort], rank=1).values_N
    ranks = [f.rank for f in cohort]
    return ModuleNorms(
        ideal=centred.ideal_norm(),
        change=math.nan if start is None else centred.change_from(start, ranks),
        error=centred.error_of(published),
        factor_mean=centred.factor_mean_error(),
        bound=float(torch.linalg.vector_norm(values_N[published.rank :])),
        values_sum=float(values_N.sum()),
        values_squares=float(values_N.square().sum()),
        rank=published.rank,
    )


def certify(
    contributions: Sequence[Contribution],
    *,
    published: Path,
    published_scaling: float | Mapping[str, float],
    base: Path | None,
    base_scaling: float | Mapping[str, float] = 1.0,
    method_name: str,
    measurements: Mapping[str, Mapping[str, float]] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Measures a published adapter against the updates it was made from.

    Args:
        contributions: the updates, as given to `aggregate`.
        published: the file that was sent out.
        published_scaling: s with which it is served.
        base: the adapter the updates started from; None where there is none or it is unknown,
            and then all figures against the round's change are NaN.
        base_scaling: s of the base.
        method_name: registry name, for the record.
        measurements: what the method measured, by module path.
        device: where the arithmetic runs, in float64.
        progress: called with (modules done, modules in all).

    Raises:
        FedLoraError: LAYOUT_MISMATCH for files of different modules; what `CohortFiles` raises.
    """
    given = measurements or {}
    norms: dict[str, ModuleNorms] = {}
    with ExitStack() as stack:
        cohort = stack.enter_context(CohortFiles(contributions))
        sent = AdapterFile(published, published_scaling, "the published adapter")
        _check_modules(cohort, stack.enter_context(sent))
        origin = None
        if base is not None:
            origin = stack.enter_context(AdapterFile(base, base_scaling, "the base adapter"))
            _check_modules(cohort, origin)
        roundoff = _UNIT_ROUNDOFF[sent.dtype()]
        for module in cohort.modules:
            norms[module] = measure(
                cohort.factors(module, device),
                cohort.weights_U,
                published=sent.factors(module, device),
                start=None if origin is None else origin.factors(module, device),
            )
            if progress is not None:
                progress(len(norms), len(cohort.modules))
    entries = tuple(
        n.entry(module, roundoff=roundoff, measurements=given.get(module, {}))
        for module, n in norms.items()
    )
    whole = _whole(list(norms.values()))
    overall = whole.entry("", roundoff=roundoff, measurements=_means(list(given.values())))
    return Certificate(method=method_name, overall=overall, modules=entries)


def _whole(parts: Sequence[ModuleNorms]) -> ModuleNorms:
    return ModuleNorms(
        ideal=math.hypot(*(p.ideal for p in parts)),
        change=math.hypot(*(p.change for p in parts)),
        error=math.hypot(*(p.error for p in parts)),
        factor_mean=math.hypot(*(p.factor_mean for p in parts)),
        bound=math.hypot(*(p.bound for p in parts)),
        values_sum=math.fsum(p.values_sum for p in parts),
        values_squares=math.fsum(p.values_squares for p in parts),
        rank=max(p.rank for p in parts),
    )


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for part in parts for name in part})
    return {
        name: math.fsum(part[name] for part in parts if name in part)
        / sum(name in part for part in parts)
        for name in names
    }


def _ratio(numerator: float, denominator: float) -> float:
    """0 / 0 is 0: nothing was there, and nothing was lost."""
    if denominator == 0:
        return 0.0 if numerator == 0 else math.inf
    return numerator / denominator


def _check_modules(cohort: CohortFiles, file: AdapterFile) -> None:
    for module in cohort.modules:
        if module not in file.ranks or file.features(module) != cohort.features(module):
            raise FedLoraError(
                Reason.LAYOUT_MISMATCH,
                f"{file.owner} does not fit the updates at module {module!r}",
                hint="Certify the file that was made from these updates",
            )
