from __future__ import annotations

import torch

from client_worker.data.collate import pack, pad
from client_worker.data.encoding import IGNORED, EncodedExample

X = IGNORED
SHORT = EncodedExample((7, 8), (X, 8))
MIDDLE = EncodedExample((4, 5, 6), (X, X, 6))
LONG = EncodedExample((1, 2, 3, 9), (X, 2, 3, 9))


def test_rows_are_padded_on_the_right_and_targets_are_the_tokens_that_follow():
    batch = pad([SHORT, LONG], pad_id=0, per_token=True)
    assert batch.inputs["input_ids"].tolist() == [[7, 8, 0, 0], [1, 2, 3, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.targets.tolist() == [[8, X, X, X], [2, 3, 9, X]]
    assert (batch.num_examples, batch.num_targets) == (2, 4)


def test_a_classifiers_targets_are_its_labels():
    batch = pad(
        [EncodedExample((1, 2), (2,)), EncodedExample((3,), (0,))], pad_id=0, per_token=False
    )
    assert batch.targets.tolist() == [2, 0]
    assert batch.num_targets == 2


def test_packed_examples_begin_at_position_0_and_predict_nothing_of_each_other():
    batch = pack([SHORT, LONG, MIDDLE], pad_id=0, max_tokens=7)
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 9, 4, 5, 6], [7, 8, 0, 0, 0, 0, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4]]
    assert batch.targets.tolist() == [[2, 3, 9, X, X, 6, X], [8, X, X, X, X, X, X]]
    assert "attention_mask" not in batch.inputs


def test_packing_keeps_every_example_and_target():
    padded = pad([SHORT, MIDDLE, LONG], pad_id=0, per_token=True)
    packed = pack([SHORT, MIDDLE, LONG], pad_id=0, max_tokens=5)
    assert (packed.num_examples, packed.num_targets) == (padded.num_examples, padded.num_targets)
    assert packed.inputs["input_ids"].shape == (2, 5)


def test_a_batch_moves_to_a_device_as_a_whole():
    moved = pad([SHORT], pad_id=0, per_token=True).to(torch.device("meta"))
    assert {t.device.type for t in (*moved.inputs.values(), moved.targets)} == {"meta"}
