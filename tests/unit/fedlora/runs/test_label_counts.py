from __future__ import annotations

import random

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.label_counts import LabelCounts


def counted(pairs: list[tuple[int, int]], num_labels: int) -> LabelCounts:
    """Counts of (label, told) pairs."""
    labels = range(num_labels)
    return LabelCounts(
        correct=tuple(pairs.count((v, v)) for v in labels),
        predicted=tuple(sum(told == v for _, told in pairs) for v in labels),
        present=tuple(sum(label == v for label, _ in pairs) for v in labels),
    )


def f1_by_definition(pairs: list[tuple[int, int]], label: int) -> float:
    """The harmonic mean of precision and recall, 0 where either has nothing to be a share of."""
    hits = pairs.count((label, label))
    told = sum(t == label for _, t in pairs)
    there = sum(v == label for v, _ in pairs)
    if not (hits and told and there):
        return 0.0
    precision, recall = hits / told, hits / there
    return 2 * precision * recall / (precision + recall)


def test_macro_f1_and_balanced_accuracy_worked_by_hand():
    # Label 0: 3 of 4 found, 1 of 4 told wrongly: 6/8. Label 1: 1 of 2 found, 2 told: 2/4.
    counts = LabelCounts(correct=(3, 1), predicted=(4, 2), present=(4, 2))
    assert counts.macro_f1 == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert counts.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_a_label_that_nobody_has_and_nobody_was_told_does_not_count():
    counts = LabelCounts(correct=(3, 1, 0), predicted=(4, 2, 0), present=(4, 2, 0))
    without = LabelCounts(correct=(3, 1), predicted=(4, 2), present=(4, 2))
    assert counts.macro_f1 == without.macro_f1
    assert counts.balanced_accuracy == without.balanced_accuracy


def test_a_label_that_was_told_and_is_not_there_counts_with_nothing():
    counts = counted([(0, 0), (0, 1)], 2)
    assert counts.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert counts.balanced_accuracy == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_workers_pool_to_the_figures_of_all_examples_together(seed: int):
    draw = random.Random(seed)
    # Workers with labels of their own, so that the mean of their figures is another number.
    workers = [
        [(draw.choice(labels), draw.randrange(5)) for _ in range(draw.randrange(1, 20))]
        for labels in ((0, 1), (1, 2), (2, 3))
    ]
    pooled = LabelCounts.total(counted(pairs, 5) for pairs in workers)
    everything = [pair for pairs in workers for pair in pairs]
    seen = {v for pair in everything for v in pair}
    expected = sum(f1_by_definition(everything, v) for v in seen) / len(seen)
    assert pooled.macro_f1 == pytest.approx(expected, rel=1e-12)
    means = [counted(pairs, 5).macro_f1 for pairs in workers]
    assert abs(sum(means) / 3 - expected) > 1e-3


@pytest.mark.parametrize(
    "counts",
    [
        {"correct": (1,), "predicted": (1, 0), "present": (1, 0)},
        {"correct": (2, 0), "predicted": (1, 1), "present": (2, 0)},
        {"correct": (1, 0), "predicted": (2, 0), "present": (0, 2)},
        {"correct": (-1, 0), "predicted": (1, 0), "present": (1, 0)},
        {"correct": (0, 0), "predicted": (2, 0), "present": (1, 0)},
    ],
    ids=["lengths", "more than told", "more than there", "negative", "sums"],
)
def test_counts_that_contradict_each_other_are_refused(counts: dict[str, tuple[int, ...]]):
    with pytest.raises(FedLoraError, match="label counts: expected") as caught:
        LabelCounts(**counts)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
