"""One number out of several sets of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedlora.runs.tasks import Evaluation

__all__ = ["pooled_metric"]


def pooled_metric(evaluations: Iterable[Evaluation], metric: str) -> float | None:
    """The mean of a metric over all examples of some sets; None where no set has both."""
    counted = [e for e in evaluations if metric in e.metrics and e.num_examples]
    total = sum(e.num_examples for e in counted)
    if not total:
        return None
    if len(counted) == 1:
        # n x / n need not be x.
        return counted[0].metrics[metric]
    return math.fsum(e.metrics[metric] * e.num_examples for e in counted) / total
