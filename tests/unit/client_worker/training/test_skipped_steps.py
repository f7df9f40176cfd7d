"""Steps that the loss scaler of float16 skips: no steps, for plug-ins and for the round."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

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
from client_worker.training.precision import Precision
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.extras import extras_of
from fedlora.adapters.names import extra_key
from fedlora.plugins.scaffold import Mode
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.method import RuleSpec
from fedlora.runs.training import OptimizerName

STEPS, RATE = 4, 0.125


class Overflowing(torch.amp.GradScaler):
    """torch's scaler, to which the gradients of the batches named are infinite."""

    def __init__(self, batches: frozenset[int]) -> None:
        super().__init__("cpu")
        self.batches, self.seen = batches, 0

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.seen in self.batches:
            next(p.grad for p in parameters if p.grad is not None).view(-1)[0] = torch.inf
        self.seen += 1
        super().unscale_(optimizer)


@dataclass(frozen=True)
class Half(Precision):
    """The CPU's arithmetic with float16's scaler."""

    batches: frozenset[int] = frozenset()

    def scaler(self) -> torch.amp.GradScaler:
        return Overflowing(self.batches)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    return DataConfig(path=str(write_jsonl(path, labelled_rows(22))), held_out_fraction=0.0)


Made = Callable[..., LocalTrainer]


@pytest.fixture(scope="module")
def made(bert, data) -> Made:
    def made(*skipped: int, plugin: RuleSpec | None = None, **training) -> LocalTrainer:
        settings = {"optimizer": OptimizerName.SGD, "learning_rate": RATE, **training}
        run = worker_run(classifier_spec(bert), local_steps=STEPS, **settings)
        trainer = trainer_for(replace(run, plugins=(plugin,) if plugin else ()), data)
        trainer._precision = Half(torch.device("cpu"), None, frozenset(skipped))
        return trainer

    return made


def scaffold(mode: Mode) -> RuleSpec:
    return RuleSpec(name="scaffold", options={"mode": mode.value})


def test_a_round_has_as_many_steps_as_were_made(made: Made):
    assert made().train(RoundWork(round=1, seed=3)).num_steps == STEPS
    outcome = made(0, 2).train(RoundWork(round=1, seed=3))
    assert (outcome.num_steps, outcome.num_examples) == (2, 22)


def test_where_none_was_made_nothing_was_trained_on(made: Made):
    trainer = made(*range(STEPS))
    before = trainer.trained_values()
    outcome = trainer.train(RoundWork(round=1, seed=3))
    assert (outcome.num_steps, outcome.num_examples) == (0, 0)
    assert all(torch.equal(t, before[n]) for n, t in trainer.trained_values().items())


def test_the_rate_goes_by_batches(made: Made):
    trainer, rates = made(0, 1, warmup_fraction=0.75), []
    work = RoundWork(
        round=1, seed=3, on_progress=lambda *told: rates.append(told[2]["learning_rate"])
    )
    trainer.train(work)
    assert rates == [RATE / 4, RATE / 2, RATE * 3 / 4, RATE]


def test_fednova_counts_the_steps_that_were_made(made: Made):
    fednova = RuleSpec(name="fednova")
    work = RoundWork(round=1, seed=3)
    assert made(plugin=fednova).train(work).metrics["fednova_a"] == STEPS
    assert made(0, 3, plugin=fednova).train(work).metrics["fednova_a"] == STEPS - 2


@pytest.mark.parametrize("mode", Mode)
def test_scaffold_divides_by_the_rates_of_the_steps_that_were_made(made: Made, mode: Mode):
    trainer = made(1, plugin=scaffold(mode), warmup_fraction=0.75)
    before = trainer.trained_values()
    outcome = trainer.train(RoundWork(round=1, seed=3))
    change = extras_of(outcome.sent_extras, "scaffold/dc")
    for name, after in trainer.trained_values().items():
        # c and c_u are 0 in the first round; steps at 1/4, 3/4 and 4/4 of the rate.
        assert torch.allclose(change[name], (before[name] - after) / (2 * RATE), rtol=1e-6)
    assert any(float(t.abs().max()) > 0 for t in change.values())


def test_decoupled_nothing_is_corrected_where_no_step_is_made(made: Made):
    trainer = made(1, 2, plugin=scaffold(Mode.DECOUPLED))
    lived = [trainer.trained_values()]
    c = {extra_key("scaffold/c", n): torch.ones_like(t) for n, t in lived[0].items()}
    work = RoundWork(round=1, seed=3, on_progress=lambda *_: lived.append(trainer.trained_values()))
    trainer.train(work, c)
    moved = [
        any(not torch.equal(one[n], other[n]) for n in one)
        for one, other in itertools.pairwise(lived)
    ]
    assert moved == [True, False, False, True]


def left_alone(trainer: LocalTrainer) -> bool:
    """Whether a round in which nothing is trained leaves c_u, and the sum of all c_u."""
    shapes = trainer.trained_values()
    c = {extra_key("scaffold/c", n): torch.ones_like(t) for n, t in shapes.items()}
    own = {extra_key("scaffold/c_u", n): torch.full_like(t, 5.0) for n, t in shapes.items()}
    outcome = trainer.train(RoundWork(round=1, seed=3), {**c, **own})
    assert outcome.num_examples == 0
    assert outcome.sent_extras.keys() == {extra_key("scaffold/dc", n) for n in shapes}
    still = all(not t.any() for t in outcome.sent_extras.values())
    return still and all(torch.equal(outcome.kept_extras[k], t) for k, t in own.items())


@pytest.mark.parametrize("mode", Mode)
def test_scaffold_leaves_c_u_where_no_step_was_made(made: Made, mode: Mode):
    assert left_alone(made(*range(STEPS), plugin=scaffold(mode)))


def test_scaffold_leaves_c_u_where_a_worker_has_no_examples_of_what_joined(bert, tmp_path):
    rows = [row for row in labelled_rows(30) if row["label"] != "net"]
    data = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), held_out_fraction=0.0)
    stream = ContinualSpec(
        order=("net", "admin", "games"), sizes=(1, 1, 1), rounds_per_experience=1
    )
    run = replace(
        worker_run(classifier_spec(bert)), continual=stream, plugins=(scaffold(Mode.DECOUPLED),)
    )
    assert left_alone(trainer_for(run, data))
