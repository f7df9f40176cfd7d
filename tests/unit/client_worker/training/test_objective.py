from __future__ import annotations

import math

import pytest
import torch

from client_worker.data.collate import Batch, pad
from client_worker.data.encoding import IGNORED, EncodedExample
from client_worker.training.objective import label_counts, loss_sum, score_sums

LOGITS = torch.tensor([2.0, 1.0, 0.0])
"""of every position; log-probabilities -0.4076, -1.4076, -2.4076"""
LOG_SUM = math.log(math.exp(2) + math.exp(1) + 1)


def test_the_loss_is_taken_over_the_completion_only_worked_by_hand():
    # Prompt (0, 1), completion (1, 2): position 1 predicts 1, position 2 predicts 2.
    example = EncodedExample((0, 1, 1, 2), (IGNORED, IGNORED, 1, 2))
    batch = pad([example, EncodedExample((0, 0), (IGNORED, 0))], pad_id=0, per_token=True)
    logits = LOGITS.expand(2, 4, 3)
    by_hand = (LOG_SUM - 1.0) + (LOG_SUM - 0.0) + (LOG_SUM - 2.0)
    assert float(loss_sum(logits, batch.targets)) == pytest.approx(by_hand, rel=1e-6)
    assert batch.num_targets == 3


def test_each_example_of_a_language_model_counts_once_whatever_its_length():
    one = EncodedExample((0, 1, 1, 2), (IGNORED, IGNORED, 1, 2))
    other = EncodedExample((0, 0), (IGNORED, 0))
    batch = pad([one, other], pad_id=0, per_token=True)
    sums = score_sums(LOGITS.expand(2, 4, 3), batch)
    assert sums.loss == pytest.approx((2 * LOG_SUM - 1) / 2 + LOG_SUM - 2, rel=1e-6)
    assert sums.correct == 0 + 1
    assert sums.exact == 1


def test_a_classifier_is_right_where_its_largest_logit_is():
    batch = Batch(inputs={}, targets=torch.tensor([0, 2]), num_examples=2)
    sums = score_sums(LOGITS.expand(2, 3), batch)
    assert sums.correct == 1
    assert sums.loss == pytest.approx(2 * LOG_SUM - 2, rel=1e-6)


def test_an_answer_that_is_right_but_for_one_token_is_no_exact_match():
    # Completion (0, 0, 1): the largest logit is that of 0.
    example = EncodedExample((2, 0, 0, 1), (IGNORED, 0, 0, 1))
    sums = score_sums(LOGITS.expand(1, 4, 3), pad([example], pad_id=0, per_token=True))
    assert (sums.correct, sums.exact) == (pytest.approx(2 / 3), 0)


def test_a_classifiers_hits_and_misses_are_counted_by_label():
    logits = torch.eye(4)[[0, 0, 1, 0]]
    counts = label_counts(logits, torch.tensor([0, 2, 1, 2]))
    assert counts.tolist() == [[1, 1, 0, 0], [3, 1, 0, 0], [1, 1, 2, 0]]
