from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_federation import train_task
from support.tiny_trainer import adapter

from client_worker.outbox import Outbox, TrainedUpdate
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit
from fedlora.tensors.safetensors_io import encode

UPDATE = TrainedUpdate(
    payload=encode(adapter(seed=5)),
    num_examples=17,
    metrics={"train_loss": 0.25},
    evaluations=(
        Evaluation(
            scope=EvaluationScope.LOCAL,
            split=EvaluationSplit.HELD_OUT,
            num_examples=3,
            metrics={"accuracy": 1.0},
            label_counts=LabelCounts(correct=(2, 1), predicted=(2, 1), present=(2, 1)),
        ),
        # Of a continual run: a server refuses scores that do not say of which experience they are.
        Evaluation(
            scope=EvaluationScope.LOCAL,
            split=EvaluationSplit.HELD_OUT,
            num_examples=2,
            metrics={"accuracy": 0.5},
            experience=3,
        ),
    ),
)


def test_an_update_comes_back_with_the_same_bytes_and_facts(tmp_path: Path):
    Outbox(tmp_path / "o").keep(train_task(), UPDATE)
    found = Outbox(tmp_path / "o").find(train_task())
    assert found is not None
    assert found.payload.digest == UPDATE.payload.digest
    assert replace(found, payload=UPDATE.payload) == UPDATE


@pytest.mark.parametrize(
    "other", [train_task(2), replace(train_task(), adapter_version=9), train_task(run_id="run-2")]
)
def test_it_is_not_taken_for_another_task(tmp_path: Path, other):
    outbox = Outbox(tmp_path / "o")
    outbox.keep(train_task(), UPDATE)
    assert outbox.find(other) is None


def test_a_flipped_bit_is_found_and_the_update_trained_again(tmp_path: Path):
    outbox = Outbox(tmp_path / "o")
    outbox.keep(train_task(), UPDATE)
    path = tmp_path / "o" / "payload.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert outbox.find(train_task()) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"task_id": 1}', "null"])
def test_a_description_cut_short_is_as_good_as_none(tmp_path: Path, text: str):
    outbox = Outbox(tmp_path / "o")
    outbox.keep(train_task(), UPDATE)
    (tmp_path / "o" / "update.json").write_text(text)
    assert outbox.find(train_task()) is None


def test_a_process_that_dies_between_the_two_files_has_kept_nothing(tmp_path: Path):
    outbox = Outbox(tmp_path / "o")
    outbox.keep(train_task(), UPDATE)
    (tmp_path / "o" / "update.json").unlink()
    assert outbox.find(train_task()) is None


def test_the_next_update_takes_the_place_of_the_last(tmp_path: Path):
    outbox = Outbox(tmp_path / "o")
    outbox.keep(train_task(1), UPDATE)
    outbox.keep(train_task(2), UPDATE)
    assert outbox.find(train_task(1)) is None
    assert outbox.find(train_task(2)) is not None
    outbox.clear()
    assert outbox.find(train_task(2)) is None


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    outbox = Outbox(tmp_path / "file" / "outbox")
    outbox.keep(train_task(), UPDATE)
    assert outbox.find(train_task()) is None


def test_without_a_folder_nothing_is_kept():
    outbox = Outbox(None)
    outbox.keep(train_task(), UPDATE)
    assert outbox.find(train_task()) is None
    outbox.clear()
