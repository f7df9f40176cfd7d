from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from support.builders import normal
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
from client_worker.training.trainer import TaskAbandoned
from fedlora.errors import FedLoraError, Reason


@dataclass
class Round:
    """One round on a fresh trainer: the adapter it left, and what it reported on the way."""

    adapter: dict[str, torch.Tensor]
    outcome: object
    steps: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)


def train(run, path, *, round=1, seed=3, held_out=0.0) -> Round:
    trainer = trainer_for(run, DataConfig(path=str(path), held_out_fraction=held_out))
    steps = []
    work = RoundWork(round=round, seed=seed, on_progress=lambda *step: steps.append(step))
    outcome = trainer.train(work)
    return Round(trainer.adapter(), outcome, steps)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "labelled.jsonl", labelled_rows(22))


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "completions.jsonl", completion_rows(10))


def furthest(one: Round, other: Round) -> float:
    return max(float((t - other.adapter[n]).abs().max()) for n, t in one.adapter.items())


def test_the_same_seed_round_and_adapter_give_the_same_bits(bert, labelled):
    run = worker_run(classifier_spec(bert, lora_dropout=0.2), local_epochs=2.0)
    one, two = train(run, labelled), train(run, labelled)
    assert furthest(one, two) == 0
    assert furthest(one, train(run, labelled, seed=4)) > 0
    assert furthest(one, train(run, labelled, round=2)) > 0


def test_training_leaves_the_global_generator_as_it_was(bert, labelled):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(worker_run(classifier_spec(bert, lora_dropout=0.2)), labelled)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("micro", [1, 3])
def test_a_step_is_the_same_however_it_is_cut_into_forward_passes(llama, completions, micro):
    # Completions of one to three words: a mean of micro-batches' means would differ.
    whole = train(worker_run(causal_spec(llama), batch_size=5), completions)
    cut = train(worker_run(causal_spec(llama), batch_size=5, micro_batch_size=micro), completions)
    moved = max(float(t.abs().max()) for n, t in whole.adapter.items() if ".lora_B." in n)
    assert moved > 1e-2
    # Adam divides by the root of tiny second moments, which magnifies float32's rounding.
    assert furthest(whole, cut) < 1e-3 * moved
    assert [s[2]["train_loss"] for s in cut.steps] == pytest.approx(
        [s[2]["train_loss"] for s in whole.steps], rel=1e-4
    )


def test_packing_changes_where_examples_lie_and_nothing_else(llama, completions):
    plain = train(worker_run(causal_spec(llama), batch_size=5), completions)
    packed = train(worker_run(causal_spec(llama), batch_size=5, packing=True), completions)
    moved = max(float(t.abs().max()) for n, t in plain.adapter.items() if ".lora_B." in n)
    assert furthest(plain, packed) < 1e-3 * moved


def test_checkpointing_changes_no_bit_of_what_is_learnt(llama, completions):
    plain = train(worker_run(causal_spec(llama)), completions)
    thrifty = train(worker_run(causal_spec(llama), gradient_checkpointing=True), completions)
    assert furthest(plain, thrifty) == 0


def test_the_loss_falls_on_texts_that_tell_their_label(bert, labelled):
    result = train(worker_run(classifier_spec(bert), local_epochs=15.0), labelled)
    losses = [s[2]["train_loss"] for s in result.steps]
    assert sum(losses[-6:]) / 6 < 0.5 * losses[0]


def test_progress_counts_every_step(bert, labelled):
    result = train(worker_run(classifier_spec(bert), local_epochs=1.5), labelled)
    # 22 examples in batches of 4 are 6 steps an epoch.
    assert [(done, total) for done, total, _ in result.steps] == [(i, 9) for i in range(1, 10)]
    assert result.outcome.num_steps == 9
    assert result.outcome.num_examples == 22


def test_the_rate_falls_over_the_rounds_and_rises_over_the_warm_up(bert, labelled):
    run = worker_run(classifier_spec(bert), local_steps=4, warmup_fraction=0.5)
    rates = [s[2]["learning_rate"] for s in train(run, labelled, round=3).steps]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])


def test_factors_and_head_have_rates_of_their_own(bert, labelled):
    # Adam's first step is rate * g / (|g| + 1e-8): the rate, where the gradient is not tiny.
    run = worker_run(
        classifier_spec(bert),
        learning_rate=1e-4,
        head_learning_rate=3e-3,
        local_steps=1,
        max_gradient_norm=0.0,
    )
    before = trainer_for(run, DataConfig(path=str(labelled))).adapter()
    after = train(run, labelled).adapter
    moved = {n: float((after[n] - before[n]).abs().max()) for n in after}
    for name, distance in moved.items():
        if ".lora_B." in name:
            assert distance == pytest.approx(1e-4, rel=0.1)
        elif "classifier" in name:
            assert distance == pytest.approx(3e-3, rel=0.1)
        else:
            assert distance == 0  # B = 0 keeps the gradient of A at zero


def test_b_learns_faster_than_a_by_the_ratio(bert, labelled):
    # As above, from a B that is not zero, so that A has a gradient too.
    def moved(ratio):
        run = worker_run(
            classifier_spec(bert),
            learning_rate=1e-4,
            b_learning_rate_ratio=ratio,
            local_steps=1,
            max_gradient_norm=0.0,
        )
        trainer = trainer_for(run, DataConfig(path=str(labelled)))
        before = {
            name: 0.1 * normal(1, *t.shape).float() if ".lora_B." in name else t
            for name, t in trainer.adapter().items()
        }
        trainer.load_adapter(before)
        trainer.train(RoundWork(round=1, seed=3))
        after = trainer.adapter()
        return {n: float((after[n] - before[n]).abs().max()) for n in after}

    plain, fast = moved(1.0), moved(16.0)
    for name, distance in fast.items():
        ratio = 16 if ".lora_B." in name else 1
        assert distance == pytest.approx(ratio * plain[name], rel=1e-2)
        assert plain[name] == pytest.approx(1e-4, rel=0.1)


def test_gradients_are_clipped_to_the_norm(bert, labelled, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        seen.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(worker_run(classifier_spec(bert), max_gradient_norm=0.01, local_steps=2), labelled)
    assert seen == pytest.approx([0.01, 0.01], rel=1e-3)


def test_training_stops_within_a_step_once_it_is_to_be_abandoned(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert)), DataConfig(path=str(labelled)))
    done = []
    with pytest.raises(TaskAbandoned):
        trainer.train(
            RoundWork(
                round=1,
                seed=1,
                on_progress=lambda step, *_: done.append(step),
                should_abandon=lambda: len(done) == 2,
            )
        )
    assert done == [1, 2]


def test_a_loss_that_is_no_number_ends_the_round(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert)), DataConfig(path=str(labelled)))
    broken = {n: torch.full_like(t, torch.nan) for n, t in trainer.adapter().items()}
    trainer.load_adapter(broken)
    with pytest.raises(FedLoraError, match="loss is nan in step 1 of round 2") as caught:
        trainer.train(RoundWork(round=2, seed=1))
    assert caught.value.reason is Reason.NOT_FINITE
