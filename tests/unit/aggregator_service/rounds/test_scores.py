from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aggregator_service.rounds.scores import pool_scores
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit


def score(scope: str, split: str, num_examples: int, **metrics: float) -> Evaluation:
    return Evaluation(
        scope=EvaluationScope(scope),
        split=EvaluationSplit(split),
        num_examples=num_examples,
        metrics=metrics,
    )


def test_scores_are_means_over_examples_not_over_workers():
    published = {
        "a": (score("global", "test", 30, accuracy=0.5),),
        "b": (score("global", "test", 10, accuracy=0.9),),
    }
    pooled = pool_scores({}, published)
    assert pooled["test_accuracy"] == pytest.approx(0.6)
    assert pooled["test_num_examples"] == 40


def test_no_metric_takes_the_place_of_the_number_of_examples():
    scored = replace(score("global", "test", 30), metrics={"num_examples": 7.0})
    assert pool_scores({}, {"a": (scored,)})["test_num_examples"] == 30


def test_the_gap_compares_the_same_workers_on_the_same_data():
    local = {
        "a": (score("local", "held_out", 10, accuracy=0.9),),
        "gone": (score("local", "held_out", 90, accuracy=0.1),),
    }
    published = {"a": (score("global", "held_out", 10, accuracy=0.6),)}
    pooled = pool_scores(local, published)
    assert pooled["local_global_gap"] == pytest.approx(0.3)
    assert pooled["local_accuracy"] == pytest.approx(0.18)


def test_perplexity_is_that_of_the_pooled_loss():
    published = {
        "a": (score("global", "held_out", 1, loss=1.0, perplexity=math.e),),
        "b": (score("global", "held_out", 1, loss=3.0, perplexity=math.e**3),),
    }
    assert pool_scores({}, published)["held_out_perplexity"] == pytest.approx(math.e**2)


def test_without_examples_there_is_no_score():
    assert pool_scores({}, {"a": (score("global", "test", 0, accuracy=0.0),)}) == {}


def test_equal_scores_have_no_gap_whatever_the_rounding():
    thirds = {"a": 1 / 3, "b": 2 / 3, "c": 0.7}
    local = {n: (score("local", "held_out", 3, accuracy=v),) for n, v in thirds.items()}
    other = dict(zip(thirds, (2 / 3, 0.7, 1 / 3), strict=True))
    published = {n: (score("global", "held_out", 3, accuracy=v),) for n, v in other.items()}
    gap = pool_scores(local, published)["local_global_gap"]
    assert (gap, math.copysign(1, gap)) == (0.0, 1.0)


def test_personal_scores_are_a_group_of_their_own():
    local = {"a": (score("local", "held_out", 10, accuracy=0.9),)}
    published = {
        "a": (
            score("global", "held_out", 10, accuracy=0.5),
            score("personal", "held_out", 10, accuracy=0.8),
        ),
        "b": (score("personal", "held_out", 30, accuracy=0.4),),
    }
    pooled = pool_scores(local, published)
    assert pooled["personal_accuracy"] == pytest.approx(0.5)
    assert pooled["held_out_accuracy"] == pytest.approx(0.5)
    assert pooled["local_accuracy"] == pytest.approx(0.9)
    assert pooled["local_global_gap"] == pytest.approx(0.4)


def test_scores_are_called_after_their_examples_or_personal():
    found = [score(*what, 1).label for what in (("global", "test"), ("personal", "held_out"))]
    assert found == ["test", "personal"]


def test_macro_f1_is_that_of_the_workers_counts_together_and_no_mean_of_theirs():
    def counted(**counts: tuple[int, ...]) -> Evaluation:
        return replace(score("global", "test", 4), label_counts=LabelCounts(**counts))

    published = {
        "a": (counted(correct=(4, 0), predicted=(4, 0), present=(4, 0)),),
        "b": (counted(correct=(0, 1), predicted=(3, 1), present=(0, 4)),),
    }
    pooled = pool_scores({}, published)
    # Together: label 0 has 4 of 4 and 3 too many, label 1 has 1 of 4.
    assert pooled["test_macro_f1"] == pytest.approx((8 / 11 + 2 / 5) / 2)
    assert pooled["test_balanced_accuracy"] == pytest.approx((1 + 1 / 4) / 2)


def test_workers_that_count_no_labels_leave_the_others_their_macro_f1():
    perfect = LabelCounts(correct=(1, 1), predicted=(1, 1), present=(1, 1))
    published = {
        "new": (replace(score("global", "test", 2), label_counts=perfect),),
        "old": (score("global", "test", 2, accuracy=0.0),),
    }
    assert pool_scores({}, published)["test_macro_f1"] == 1.0
