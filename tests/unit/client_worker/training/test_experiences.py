"""A stream of classes at one worker: what is trained, what stays, what is scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.worker_runs import (
    classifier_spec,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)

from client_worker.data.config import DataConfig
from client_worker.training.round_work import RoundWork
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.tasks import EvaluationScope, EvaluationSplit

HEAD = "classifier"
STREAM = ContinualSpec(order=("games", "admin", "net"), sizes=(1, 1, 1), rounds_per_experience=1)
"""of the labels admin, games, net, which are the head's rows 0, 1 and 2"""


def rows():
    """No row of "net" is for training."""
    found = labelled_rows(60, test=15)
    return [row for row in found if row["split"] == "test" or row["label"] != "net"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    return DataConfig(
        path=str(write_jsonl(path, rows())), split_column="split", held_out_fraction=0.2
    )


@pytest.fixture
def trainer(bert, data):
    return made(bert, data)


def made(bert, data, **stream):
    run = worker_run(classifier_spec(bert), weight_decay=0.0)
    return trainer_for(replace(run, continual=replace(STREAM, **stream)), data)


def work(number: int) -> RoundWork:
    return RoundWork(round=number, seed=5, plan=RoundPlan())


def head_of(trainer):
    return {n: t.clone() for n, t in trainer.adapter().items() if HEAD in n}


def test_a_round_trains_on_what_joined_last(trainer):
    outcomes = [trainer.train(work(number)) for number in (1, 2)]
    assert [o.num_examples for o in outcomes] == [12, 12]


def test_earlier_examples_may_stay(bert, data):
    keeping = made(bert, data, keep_earlier=True)
    assert [keeping.train(work(number)).num_examples for number in (1, 2)] == [12, 24]


def test_rows_of_earlier_and_later_classes_stay_bit_for_bit(trainer):
    trainer.train(work(1))
    before = head_of(trainer)
    trainer.train(work(2))
    after = head_of(trainer)
    assert len(after) == 2
    for name, tensor in after.items():
        admin, games, net = range(3)
        assert torch.equal(tensor[games], before[name][games])
        assert torch.equal(tensor[net], before[name][net])
        # One class alone leaves nothing to tell apart, so its own row has no gradient either.
        assert torch.equal(tensor[admin], before[name][admin])


def test_earlier_classes_may_compete_and_are_then_pushed_down(bert, data):
    competing = made(bert, data, compete_with_earlier=True)
    competing.train(work(1))
    before = head_of(competing)
    competing.train(work(2))
    admin, games, net = range(3)
    for name, tensor in head_of(competing).items():
        assert not torch.equal(tensor[games], before[name][games])
        assert not torch.equal(tensor[admin], before[name][admin])
        assert torch.equal(tensor[net], before[name][net])


def test_classes_that_join_together_are_told_apart(bert, data):
    pair = made(bert, data, sizes=(2, 1))
    before = head_of(pair)
    pair.train(work(1))
    after = head_of(pair)
    for name, tensor in after.items():
        assert not torch.equal(tensor[:2], before[name][:2])
        assert torch.equal(tensor[2], before[name][2])


def test_a_worker_without_examples_of_what_joined_changes_nothing(trainer):
    before = trainer.adapter()
    outcome = trainer.train(work(3))
    assert (outcome.num_examples, outcome.num_steps) == (0, 0)
    assert "train_loss" not in outcome.metrics
    after = trainer.adapter()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_has_joined_is_scored_by_experience(trainer):
    def scored(number):
        found = trainer.evaluate(EvaluationScope.GLOBAL, round=number)
        return [(e.split, e.experience, e.num_examples) for e in found], found

    held_out, test = EvaluationSplit.HELD_OUT, EvaluationSplit.TEST
    seen, _ = scored(1)
    assert seen == [(held_out, 1, 3), (test, 1, 5)]
    seen, _ = scored(3)
    # Nothing of "net" is held out here; the shared test set has it.
    assert seen == [(held_out, 1, 3), (held_out, 2, 3), (test, 1, 5), (test, 2, 5), (test, 3, 5)]


def test_a_class_that_has_not_joined_is_never_predicted(trainer):
    with torch.no_grad():
        for name, parameter in trainer.module.named_parameters():
            if HEAD in name and "modules_to_save" in name and name.endswith("bias"):
                parameter[2] = 50.0
    only_first = trainer.evaluate(EvaluationScope.GLOBAL, round=1)
    assert all(e.metrics["accuracy"] == 1.0 for e in only_first)
    all_joined = trainer.evaluate(EvaluationScope.GLOBAL, round=3)
    by_experience = {e.experience: e for e in all_joined if e.split is EvaluationSplit.TEST}
    assert [by_experience[n].metrics["accuracy"] for n in (1, 2, 3)] == [0.0, 0.0, 1.0]
