"""A classifier's hits and misses by label, as counts: what is made of their sums pools exactly.

    F1_v = 2 c_v / (p_v + n_v)     macro-F1 is its mean over the labels with p_v + n_v > 0
    recall_v = c_v / n_v           balanced accuracy is its mean over the labels with n_v > 0

of label v, c_v examples predicted rightly, p_v predicted to be of it, n_v that are of it.

A label that no example has and none was predicted to have says nothing of the classifier and does
not count; one that was predicted but is not there, or is there and never predicted, has an F1 of 0.
(Opitz and Burst 2019, "Macro F1 and Macro F1", arXiv:1911.03347: this is their mean of F1 scores.)
The mean of workers' macro-F1 is another number, in which a label counts as often as workers have
it; so workers send the counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason

__all__ = ["LabelCounts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """Examples by label, in the order of the run's labels."""

    correct: tuple[int, ...]
    """of the label, and predicted so"""
    predicted: tuple[int, ...]
    """predicted to be of the label"""
    present: tuple[int, ...]
    """of the label"""

    def __post_init__(self) -> None:
        lengths = {len(self.correct), len(self.predicted), len(self.present)}
        counts = zip(self.correct, self.predicted, self.present, strict=False)
        if len(lengths) > 1 or any(not 0 <= c <= min(p, n) for c, p, n in counts):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "label counts: expected, label by label, no more correct examples than predicted "
                f"and present ones, got {self.correct[:5]}, {self.predicted[:5]} and "
                f"{self.present[:5]}",
            )
        if sum(self.predicted) != sum(self.present):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "label counts: expected one prediction for each example, got "
                f"{sum(self.predicted)} for {sum(self.present)}",
            )

    @property
    def num_examples(self) -> int:
        """Examples counted."""
        return sum(self.present)

    @property
    def macro_f1(self) -> float:
        """Mean F1, in [0, 1], of the labels that were there or predicted."""
        sums = zip(self.correct, self.predicted, self.present, strict=True)
        scores = [2 * c / (p + n) for c, p, n in sums if p + n]
        return sum(scores) / len(scores)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall, in [0, 1], of the labels that were there."""
        recalls = [c / n for c, n in zip(self.correct, self.present, strict=True) if n]
        return sum(recalls) / len(recalls)

    @staticmethod
    def total(counts: Iterable[LabelCounts]) -> LabelCounts:
        """The counts of several sets of examples together; at least one, of the same labels."""
        members = list(counts)
        return LabelCounts(
            correct=_sums(m.correct for m in members),
            predicted=_sums(m.predicted for m in members),
            present=_sums(m.present for m in members),
        )


def _sums(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*rows, strict=True))
