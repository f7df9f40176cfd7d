"""Mean, spread, and whether a variant differs from the baseline: paired by seed.

Two variants of one seed share their data, first adapter and order of examples, and most of what
one seed differs by from another is in those. So a difference is taken within each seed, and its
mean is held against its own spread (Student's paired t test, two-sided). Of several variants
beside one baseline some would differ by chance: their p values are Holm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fedlora.errors import FedLoraError, Reason

__all__ = ["Difference", "compare", "deviation", "holm"]

_FEWEST_PAIRS = 2
_LEVEL = 0.95

_ROUNDING = 1e-12
"""of values that have six digits: a spread below that share of them is that of subtraction"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A variant minus the baseline, over the seeds that both have.

    `low`, `high` and `p` are NaN where every seed differs by the same amount: what does not spread
    has no error to hold it against. Two seeds of a score that counts a few rows come to that.
    """

    count: int
    mean: float
    low: float
    high: float
    """95 % confidence interval of the mean"""
    p: float
    """that so much is seen where there is no difference"""


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of single seeds, at least one; 0 for one."""
    return stdev(values) if len(values) > 1 else 0.0


def compare(of: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """The difference of two variants' values by seed; None for fewer than two common seeds."""
    seeds = sorted(of.keys() & baseline.keys())
    if len(seeds) < _FEWEST_PAIRS:
        return None
    differences = [of[s] - baseline[s] for s in seeds]
    mean = fmean(differences)
    largest = max(abs(v) for s in seeds for v in (of[s], baseline[s]))
    # 0.8 - 0.7 is not 0.7 - 0.6.
    if deviation(differences) <= _ROUNDING * largest:
        is_none = abs(mean) <= _ROUNDING * largest
        low, high, p = (0.0, 0.0, 1.0) if is_none else (math.nan, math.nan, math.nan)
        mean = 0.0 if is_none else mean
        return Difference(count=len(seeds), mean=mean, low=low, high=high, p=p)
    tested = _stats().ttest_1samp(differences, 0.0)
    low, high = tested.confidence_interval(_LEVEL)
    return Difference(
        count=len(seeds),
        mean=mean,
        low=float(low),
        high=float(high),
        p=float(tested.pvalue),
    )


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """P values by name, adjusted for their number (Holm 1979): never below the smaller ones."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(values) - rank)))
        adjusted[name] = highest
    return adjusted


def _stats() -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            "comparing variants needs the package scipy, which is not installed",
            hint="Install it with: pip install 'fedlora[study]'",
        ) from error
    return stats
