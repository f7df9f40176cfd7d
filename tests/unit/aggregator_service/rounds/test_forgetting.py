from __future__ import annotations

import pytest

from aggregator_service.rounds.forgetting import best_scores, forgetting
from aggregator_service.rounds.scores import pool_scores
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

STREAM = ContinualSpec(order=("a", "b", "c"), sizes=(1, 1, 1), rounds_per_experience=2)


def scores(*values: float, metric: str = "accuracy", group: str = "test") -> dict[str, float]:
    return {f"{group}_experience_{n}_{metric}": v for n, v in enumerate(values, start=1)}


def through(*rounds: dict[str, float]) -> list[dict[str, float]]:
    found, best = [], dict[str, float]()
    for number, metrics in enumerate(rounds, start=1):
        found.append(forgetting(STREAM, number, best, metrics))
        best = best_scores(STREAM, number, best, metrics)
    return found


def test_what_was_lost_is_taken_from_the_best_there_was():
    # By hand: after round 5 the first experience lost 0.9 - 0.5 and the second 0.8 - 0.7.
    found = through(
        scores(0.9), scores(0.8), scores(0.7, 0.6), scores(0.6, 0.8), scores(0.5, 0.7, 0.9)
    )
    assert found[:2] == [{}, {}]
    assert found[2] == {"test_forgetting": pytest.approx(0.2)}
    assert found[4] == {"test_forgetting": pytest.approx((0.4 + 0.1) / 2)}


def test_it_is_negative_where_later_experiences_help_earlier_ones():
    found = through(scores(0.5), scores(0.6), scores(0.9, 0.4))
    assert found[-1] == {"test_forgetting": pytest.approx(-0.3)}


def test_texts_are_judged_by_their_tokens_and_workers_own_rows_too():
    def of(*values):
        return scores(*values, metric="token_accuracy") | scores(
            *(v / 2 for v in values), metric="token_accuracy", group="held_out"
        )

    found = through(of(0.8), of(0.8), of(0.6, 0.5))
    expected = {"test_forgetting": 0.2, "held_out_forgetting": 0.1}
    assert found[-1] == pytest.approx(expected)


def test_a_round_without_scores_changes_nothing():
    found = through(scores(0.9), {}, {}, scores(0.6, 0.5))
    assert found[2] == {}
    assert found[3] == {"test_forgetting": pytest.approx(0.3)}


def of_worker(experience: int, num_examples: int, accuracy: float, scope: str = "global"):
    return Evaluation(
        scope=EvaluationScope(scope),
        split=EvaluationSplit.HELD_OUT,
        num_examples=num_examples,
        metrics={"accuracy": accuracy},
        experience=experience,
    )


def test_experiences_are_pooled_each_for_itself_and_together():
    published = {
        "u": (of_worker(1, 10, 0.5), of_worker(2, 30, 0.9)),
        "v": (of_worker(1, 10, 0.7),),
    }
    local = {"u": (of_worker(1, 10, 0.6, "local"), of_worker(2, 30, 1.0, "local"))}
    pooled = pool_scores(local, published)
    assert pooled["held_out_experience_1_accuracy"] == pytest.approx(0.6)
    assert pooled["held_out_experience_2_accuracy"] == 0.9
    assert pooled["held_out_accuracy"] == pytest.approx((5 + 27 + 7) / 50)
    # A worker counts once, with all of its rows: 32 of 40, and 7 of 10.
    assert pooled["held_out_accuracy_lowest"] == pytest.approx(0.7)
    # Like is compared with like: 0.1 on each of the 40 examples.
    assert pooled["local_global_gap"] == pytest.approx(0.1)
