"""Training and scoring on a device that has no room for the passes that the run asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog
import torch
from support.small_device import small_device
from support.worker_runs import (
    causal_spec,
    classifier_spec,
    completion_rows,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)

from client_worker.data.config import DataConfig
from client_worker.training.round_work import RoundWork
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan
from fedlora.runs.tasks import EvaluationScope

WORK = RoundWork(round=1, seed=3)


def rows_up_to(most):
    return lambda rows, tokens: rows <= most


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("data") / "labelled.jsonl", labelled_rows(22))
    return DataConfig(path=str(path))


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("data") / "texts.jsonl", completion_rows(12))
    return DataConfig(path=str(path))


def same_bits(one, other) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize(("room", "found"), [(4, 4), (3, 2), (1, 1)])
def test_a_round_is_bit_for_bit_that_of_smaller_passes_from_the_start(
    bert, labelled, room, found, in_backward
):
    run = worker_run(classifier_spec(bert, lora_dropout=0.2), batch_size=8)
    small = replace(run, training=replace(run.training, micro_batch_size=found))
    expected, trainer = trainer_for(small, labelled), trainer_for(run, labelled)
    figures = expected.train(WORK).metrics
    with small_device(trainer.module, rows_up_to(room), in_backward=in_backward) as device:
        outcome = trainer.train(WORK)
    assert device.refused
    assert same_bits(trainer.adapter(), expected.adapter())
    assert outcome.metrics["train_loss"] == figures["train_loss"]
    assert outcome.metrics["micro_batch_size"] == figures["micro_batch_size"] == found
    assert outcome.num_steps == 3


@pytest.mark.parametrize("packing", [False, True])
def test_a_language_model_is_so_too(llama, completions, packing):
    run = worker_run(causal_spec(llama), batch_size=6, packing=packing)
    small = replace(run, training=replace(run.training, micro_batch_size=1))
    expected, trainer = trainer_for(small, completions), trainer_for(run, completions)
    expected.train(WORK)
    longest = max(e.num_tokens for e in trainer._data.train)
    with small_device(trainer.module, lambda rows, tokens: rows * tokens <= longest) as device:
        trainer.train(WORK)
    assert device.refused
    assert same_bits(trainer.adapter(), expected.adapter())


def test_a_step_that_fails_in_its_second_pass_leaves_nothing_of_its_first(llama, completions):
    run = worker_run(causal_spec(llama, lora_dropout=0.2), batch_size=6, micro_batch_size=3)
    trainer, expected = trainer_for(run, completions), trainer_for(run, completions)
    lengths = sorted(e.num_tokens for e in trainer._data.train)
    halved_in = []

    def note(step, _steps, _metrics):
        if trainer._micro_batch.most == 1:
            halved_in.append(step)

    def as_noted(step, _steps, _metrics):
        if step + 1 == halved_in[0]:
            expected._micro_batch.most = 1

    # Texts of a step are sorted by length, so its first pass fits and its second does not.
    def has_room(rows, tokens):
        return rows == 1 or tokens < lengths[-1]

    with small_device(trainer.module, has_room) as device:
        trainer.train(replace(WORK, on_progress=note))
    assert device.fitted[0][0] == 3
    if halved_in[0] == 1:
        expected._micro_batch.most = 1
    expected.train(replace(WORK, on_progress=as_noted))
    assert same_bits(trainer.adapter(), expected.adapter())


def test_magnitudes_that_stand_in_for_factors_are_trained_to_the_same_bits(bert, labelled):
    plan = RoundPlan(settings={"personal_epochs": 1.0, "personal_learning_rate": 0.1})
    run = worker_run(classifier_spec(bert, lora_dropout=0.2), batch_size=8)
    small = replace(run, training=replace(run.training, micro_batch_size=2))
    work = replace(WORK, plan=plan)
    expected, trainer = trainer_for(small, labelled), trainer_for(run, labelled)
    for each in (expected, trainer):
        each.load_adapter({n: t + 0.1 for n, t in each.adapter().items()})
    magnitudes = expected.personalise(work, None)
    with small_device(trainer.module, rows_up_to(2), in_backward=True):
        assert same_bits(trainer.personalise(work, None), magnitudes)


def test_the_size_is_kept_for_the_rounds_that_follow_and_told_once(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert), batch_size=8), labelled)
    with (
        small_device(trainer.module, rows_up_to(2)) as device,
        structlog.testing.capture_logs() as lines,
    ):
        trainer.train(WORK)
        outcome = trainer.train(replace(WORK, round=2))
    assert device.refused[:2] == [device.refused[0], (4, device.refused[1][1])]
    assert len(device.refused) == 2
    assert outcome.metrics["micro_batch_size"] == 2
    told = [(line["examples_before"], line["examples"]) for line in lines]
    assert told == [(8, 4), (4, 2)]
    assert {line["event"] for line in lines} == {"micro_batch_halved"}


@pytest.mark.parametrize("in_backward", [False, True])
def test_what_the_failed_pass_has_computed_is_free_before_the_next_begins(
    bert, labelled, in_backward
):
    trainer = trainer_for(worker_run(classifier_spec(bert), batch_size=8), labelled)
    with small_device(trainer.module, rows_up_to(1), in_backward=in_backward) as device:
        trainer.train(WORK)
    assert len(device.refused) == 3
    assert device.leaked == 0


def test_an_example_that_has_no_room_alone_is_an_error_with_the_way_out(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert), batch_size=8), labelled)
    with small_device(trainer.module, rows_up_to(0)), pytest.raises(FedLoraError) as caught:
        trainer.train(WORK)
    assert caught.value.reason is Reason.DEVICE_OUT_OF_MEMORY
    assert "one example: CUDA out of memory. Tried to allocate 2 GiB." in str(caught.value)
    assert "training.max_sequence_tokens" in caught.value.hint
    assert "And much else" not in str(caught.value)


def test_scores_are_the_same_in_the_passes_that_find_room(bert, tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", labelled_rows(40))
    data = DataConfig(path=str(path), held_out_fraction=0.5)
    trainer = trainer_for(worker_run(classifier_spec(bert)), data)
    (expected,) = trainer.evaluate(EvaluationScope.LOCAL, round=1)
    with small_device(trainer.module, rows_up_to(3)) as device:
        (scores,) = trainer.evaluate(EvaluationScope.LOCAL, round=1)
    assert device.refused
    assert sum(rows for rows, _ in device.fitted) == scores.num_examples == expected.num_examples
    assert device.leaked == 0
    assert scores.label_counts == expected.label_counts
    # Sums in another order, each of which is rounded; logits of other widths likewise.
    assert scores.metrics == pytest.approx(expected.metrics, rel=1e-5)
    with small_device(trainer.module, rows_up_to(0)), pytest.raises(FedLoraError, match="one ex"):
        trainer.evaluate(EvaluationScope.LOCAL, round=1)
