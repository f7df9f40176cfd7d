from __future__ import annotations

import math
import statistics

import pytest

from aggregator_service.rounds.fairness import fairness
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit


def held_out(
    value: float, *, metric: str = "accuracy", num_examples: int = 10, scope: str = "global"
) -> tuple[Evaluation, ...]:
    scores = Evaluation(
        scope=EvaluationScope(scope),
        split=EvaluationSplit.HELD_OUT,
        num_examples=num_examples,
        metrics={metric: value},
    )
    return (scores,)


@pytest.mark.parametrize(("num_workers", "worst"), [(2, 1), (10, 1), (11, 2), (25, 3)])
def test_the_worst_tenth_is_rounded_up_to_whole_workers(num_workers: int, worst: int):
    # Workers in no order: worker i has i / 100.
    order = sorted(range(num_workers), key=lambda i: (7 * i) % num_workers)
    found = fairness({f"w-{i}": held_out(i / 100) for i in order})
    assert found["held_out_accuracy_worst_tenth"] == pytest.approx((worst - 1) / 200)
    assert found["held_out_accuracy_lowest"] == 0.0


def test_the_deviation_is_over_all_workers_worked_by_hand():
    values = (0.2, 0.4, 0.9)
    found = fairness({f"w-{v}": held_out(v) for v in values})
    assert found["held_out_accuracy_deviation"] == pytest.approx(statistics.pstdev(values))


def test_a_worker_with_many_rows_counts_no_more_than_another():
    even = fairness({"a": held_out(0.2), "b": held_out(0.8)})
    uneven = fairness({"a": held_out(0.2, num_examples=1), "b": held_out(0.8, num_examples=10**6)})
    assert uneven == even


def test_language_models_are_judged_by_their_tokens():
    found = fairness({w: held_out(0.5, metric="token_accuracy") for w in "ab"})
    assert found["held_out_token_accuracy_worst_tenth"] == 0.5


def test_workers_that_are_alike_deviate_by_nothing():
    found = fairness({f"w-{i}": held_out(1 / 3) for i in range(7)})
    assert found["held_out_accuracy_deviation"] == pytest.approx(0.0, abs=math.ulp(1.0))


@pytest.mark.parametrize(
    "published",
    [
        {},
        {"a": held_out(0.5)},
        {"a": held_out(0.5), "b": held_out(0.5, num_examples=0)},
        {"a": held_out(0.5), "b": held_out(0.5, scope="personal")},
        {"a": held_out(0.5, metric="loss"), "b": held_out(0.5, metric="loss")},
    ],
    ids=["none", "one", "no rows", "a personal score", "no share"],
)
def test_fewer_than_two_scores_have_no_spread(published: dict[str, tuple[Evaluation, ...]]):
    assert fairness(published) == {}
