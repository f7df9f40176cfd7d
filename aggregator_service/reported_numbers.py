"""What workers report of themselves: a few numbers, under names that can be shown."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.score_names import SHARES
from fedlora.runs.tasks import Evaluation

__all__ = ["check_metrics", "check_scores"]

_LARGEST = 1e280
"""so that sums over examples and workers stay finite"""


def check_scores(evaluations: tuple[Evaluation, ...], *, num_labels: int) -> None:
    """Refuses scores that are no numbers, too many, no shares, or of other labels than the run's.

    Args:
        evaluations: as a worker sent them.
        num_labels: of the run; 0 where it classifies nothing.
    """
    if len(evaluations) > 16 or any(len(e.metrics) > 64 for e in evaluations):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, "expected at most 16 evaluations of at most 64 metrics"
        )
    for evaluation in evaluations:
        check_metrics(evaluation.metrics)
        for name in sorted(evaluation.metrics.keys() & set(SHARES)):
            if not 0 <= evaluation.metrics[name] <= 1:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    f"metric {name!r}: expected a share, in [0, 1], got {evaluation.metrics[name]}",
                )
        counts = evaluation.label_counts
        if counts is not None and len(counts.present) != num_labels:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"label counts: expected those of {num_labels} labels, got {len(counts.present)}",
            )


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Refuses metrics that no sum could hold or whose names could not be shown."""
    if len(metrics) > 64:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected at most 64 metrics, got {len(metrics)}"
        )
    for name, value in metrics.items():
        if not (name.isidentifier() and len(name) <= 64):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"a metric's name is an identifier of at most 64 characters, got {name[:80]!r}",
            )
        # Neither NaN nor infinity is.
        if not -_LARGEST <= value <= _LARGEST:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"metric {name!r} must be finite and at most {_LARGEST:g} in size, got {value}",
            )
