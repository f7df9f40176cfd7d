from __future__ import annotations

import math

import pytest

from aggregator_service.reported_numbers import check_metrics, check_scores
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

COUNTS = LabelCounts(correct=(1, 1), predicted=(1, 2), present=(2, 1))


def scores(num_examples: int = 3, counts: LabelCounts | None = COUNTS) -> Evaluation:
    return Evaluation(
        scope=EvaluationScope.GLOBAL,
        split=EvaluationSplit.TEST,
        num_examples=num_examples,
        metrics={"accuracy": 2 / 3},
        label_counts=counts,
    )


def test_counts_of_the_runs_labels_are_taken():
    check_scores((scores(), scores(counts=None)), num_labels=2)


@pytest.mark.parametrize("num_labels", [0, 1, 3])
def test_counts_of_other_labels_than_the_runs_are_refused(num_labels: int):
    with pytest.raises(FedLoraError, match=f"expected those of {num_labels} labels, got 2"):
        check_scores((scores(),), num_labels=num_labels)


def test_counts_of_more_examples_than_were_scored_are_refused():
    with pytest.raises(FedLoraError, match="expected those of 2 examples, got 3") as caught:
        scores(num_examples=2)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_metrics_that_are_no_numbers_are_refused(value: float):
    with pytest.raises(FedLoraError, match="must be finite"):
        check_metrics({"loss": value})


def test_metrics_whose_names_cannot_be_shown_are_refused():
    with pytest.raises(FedLoraError, match="identifier"):
        check_metrics({"<b>": 1.0})


def test_too_many_metrics_are_refused():
    with pytest.raises(FedLoraError, match="at most 64"):
        check_metrics({f"m{i}": 0.0 for i in range(65)})
