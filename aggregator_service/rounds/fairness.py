"""How evenly a version serves its workers: each counts once, however many rows it has.

Source  Li, Sanjabi, Beirami and Smith 2020, "Fair Resource Allocation in Federated Learning",
        arXiv:1905.10497, Table 1: the mean accuracy of the worst tenth of the devices, and the
        variance of accuracy over all of them, unweighted. Of the variance its root is reported,
        which is in the unit of the score.

A tenth of U workers is ceil(U / 10) of them, so that there is always one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fedlora.runs.pooling import pooled_metric
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

__all__ = ["fairness"]

_JUDGED = ("accuracy", "token_accuracy")
"""scores of which higher is better; the first that workers report is taken"""


def fairness(published: Mapping[str, Iterable[Evaluation]]) -> dict[str, float]:
    """The spread over workers of the published adapter's score on their own held-out data.

    Args:
        published: each worker's scores of the published adapter.

    Returns:
        ``held_out_<metric>_worst_tenth``, ``_lowest`` and ``_deviation`` (standard, over all
        workers); nothing where fewer than two workers have reported the metric.
    """
    for metric in _JUDGED:
        scores = (_score(evaluations, metric) for evaluations in published.values())
        values = sorted(score for score in scores if score is not None)
        if len(values) > 1:
            worst = values[: math.ceil(len(values) / 10)]
            mean = math.fsum(values) / len(values)
            variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
            return {
                f"held_out_{metric}_worst_tenth": math.fsum(worst) / len(worst),
                f"held_out_{metric}_lowest": values[0],
                f"held_out_{metric}_deviation": math.sqrt(variance),
            }
    return {}


def _score(evaluations: Iterable[Evaluation], metric: str) -> float | None:
    """A worker's score on its own data, of all experiences together; None where it has none."""
    published = (e for e in evaluations if e.scope is EvaluationScope.GLOBAL)
    return pooled_metric((e for e in published if e.split is EvaluationSplit.HELD_OUT), metric)
