from __future__ import annotations

import math
from dataclasses import replace

import pytest
from support.runs import run_spec

from aggregator_service.reported_numbers import check_metrics, check_scores
from aggregator_service.rounds.scores import pool_scores
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.spec import RunSpec
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


def of_labels(number: int) -> RunSpec:
    run = run_spec()
    return replace(run, adapter=replace(run.adapter, labels=tuple("abc"[:number])))


RUN = of_labels(2)
STREAM = ContinualSpec(order=("a", "b"), sizes=(1, 1), rounds_per_experience=1)


def test_counts_of_the_runs_labels_are_taken():
    check_scores((scores(), scores(counts=None)), RUN)


@pytest.mark.parametrize("num_labels", [0, 1, 3])
def test_counts_of_other_labels_than_the_runs_are_refused(num_labels: int):
    with pytest.raises(FedLoraError, match=f"expected those of {num_labels} labels, got 2"):
        check_scores((scores(),), of_labels(num_labels))


@pytest.mark.parametrize("experience", [None, 0, 3, 10**9])
def test_scores_of_no_experience_of_the_run_are_refused(experience: int | None):
    run = replace(RUN, continual=STREAM)
    check_scores((replace(scores(), experience=2),) * 32, run)
    with pytest.raises(FedLoraError, match="one of 2 experiences, got"):
        check_scores((replace(scores(), experience=experience),), run)
    with pytest.raises(FedLoraError, match="at most 32 evaluations"):
        check_scores((replace(scores(), experience=1),) * 33, run)


def test_a_run_without_a_stream_takes_no_scores_of_experiences():
    with pytest.raises(FedLoraError, match="expected those of all examples"):
        check_scores((replace(scores(), experience=1),), RUN)


def test_counts_of_more_examples_than_were_scored_are_refused():
    with pytest.raises(FedLoraError, match="expected those of 2 examples, got 3") as caught:
        scores(num_examples=2)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_metrics_that_no_sum_could_hold_are_refused(value: float):
    with pytest.raises(FedLoraError, match="must be finite"):
        check_metrics({"loss": value})


@pytest.mark.parametrize("name", ["accuracy", "token_accuracy", "exact_match"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(name: str, value: float):
    with pytest.raises(FedLoraError, match=f"'{name}': expected a share"):
        check_scores((replace(scores(), metrics={name: value}),), RUN)


def test_what_passes_the_door_breaks_no_sum():
    loud = replace(
        scores(counts=None), num_examples=2**64 - 1, metrics={"loss": 1e280, "perplexity": 1e280}
    )
    quiet = replace(loud, metrics={"loss": -1e280, "perplexity": -1e280})
    check_scores((loud, quiet), RUN)
    pool_scores({}, {"a": (loud,) * 8, "b": (quiet,) * 8, "c": (loud,) * 8})


def test_metrics_whose_names_cannot_be_shown_are_refused():
    with pytest.raises(FedLoraError, match="identifier"):
        check_metrics({"<b>": 1.0})


def test_too_many_metrics_are_refused():
    with pytest.raises(FedLoraError, match="at most 64"):
        check_metrics({f"m{i}": 0.0 for i in range(65)})
