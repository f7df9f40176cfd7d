"""A plug-in that says where a step's gradients are taken: sharpness-aware minimisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support.worker_runs import (
    causal_spec,
    classifier_spec,
    completion_rows,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)
from torch import Tensor

from client_worker.data.config import DataConfig
from client_worker.training.precision import Precision
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import LocalHooks, LocalRound, PluginDefaults, Traits
from fedlora.plugins.fedprox import FedProx
from fedlora.runs.training import OptimizerName

RATE, RHO = 0.5, 0.2


@dataclass(frozen=True, kw_only=True)
class Sam(PluginDefaults):
    """theta -= rate grad f(theta + rho g / |g|), g = grad f(theta) (Foret et al. 2021)."""

    rho: float = RHO
    declared: bool = True

    name = "sam"

    @property
    def traits(self) -> Traits:
        return Traits(owns_step=self.declared)

    def local(self, round: LocalRound) -> LocalHooks:
        def step(gradients: Callable[[], None]) -> None:
            assert not torch.is_grad_enabled()
            trained = [t for t in round.trained.values() if t.grad is not None]
            norm = math.sqrt(sum(float(t.grad.double().square().sum()) for t in trained))
            if not math.isfinite(norm):
                return
            before = [t.clone() for t in trained]
            for tensor in trained:
                tensor += self.rho / norm * tensor.grad
            gradients()
            for tensor, value in zip(trained, before, strict=True):
                tensor.copy_(value)

        return LocalHooks(step=step)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    return DataConfig(path=str(write_jsonl(path, labelled_rows(22))), held_out_fraction=0.0)


def one_trainer(bert, data, *plugins: PluginDefaults, **training) -> LocalTrainer:
    settings = {
        "optimizer": OptimizerName.SGD,
        "learning_rate": RATE,
        "max_gradient_norm": 0.0,
        "local_steps": 1,
        **training,
    }
    trainer = trainer_for(worker_run(classifier_spec(bert), **settings), data)
    trainer._plugins = plugins
    return trainer


def gradient(bert, data, at: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a round's first examples, by the way of a plain step."""
    trainer = one_trainer(bert, data)
    trainer.load_adapter(at)
    trainer.train(RoundWork(round=1, seed=3))
    return {n: (at[n] - t) / RATE for n, t in trainer.trained_values().items()}


def test_a_step_follows_the_gradient_from_where_the_plug_in_looked(bert, data):
    trainer = one_trainer(bert, data, Sam())
    begun = trainer.trained_values()
    trainer.train(RoundWork(round=1, seed=3))
    here = gradient(bert, data, begun)
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in here.values()))
    there = gradient(bert, data, {n: t + RHO / norm * here[n] for n, t in begun.items()})
    assert max(float((there[n] - t).abs().max()) for n, t in here.items()) > 1e-2
    for name, tensor in trainer.trained_values().items():
        assert torch.allclose(begun[name] - tensor, RATE * there[name], rtol=1e-4, atol=1e-6)


def test_without_a_distance_it_is_the_plain_step_bit_for_bit(bert, data):
    plain, sam = one_trainer(bert, data), one_trainer(bert, data, Sam(rho=0.0))
    for trainer in (plain, sam):
        trainer.train(RoundWork(round=1, seed=3))
    assert all(torch.equal(t, sam.trained_values()[n]) for n, t in plain.trained_values().items())


def test_its_gradients_have_the_penalties_and_are_clipped(bert, data):
    settings = {"local_steps": 2, "max_gradient_norm": 1e-3}
    with_pull = one_trainer(bert, data, Sam(), FedProx(mu=50.0), **settings)
    without = one_trainer(bert, data, Sam(), **settings)
    begun = without.trained_values()
    for trainer in (with_pull, without):
        trainer.train(RoundWork(round=1, seed=3))
        ways = [t - begun[n] for n, t in trainer.trained_values().items()]
        length = float(torch.stack([t.double().square().sum() for t in ways]).sum().sqrt())
        assert 0 < length <= 2 * RATE * 1e-3 * (1 + 1e-3)
    # Where a step begins there is no pull; rho away from there it is most of the gradient.
    assert any(
        not torch.allclose(t, without.trained_values()[n], rtol=1e-3, atol=1e-6)
        for n, t in with_pull.trained_values().items()
    )


@pytest.mark.parametrize("micro", [1, 3])
def test_a_step_is_the_same_however_it_is_cut_into_forward_passes(llama, tmp_path, micro: int):
    path = write_jsonl(tmp_path / "completions.jsonl", completion_rows(10))
    data = DataConfig(path=str(path), held_out_fraction=0.0)
    settings = {"optimizer": OptimizerName.SGD, "learning_rate": 0.1, "batch_size": 5}
    found = []
    for size in (0, micro):
        run = worker_run(causal_spec(llama), **settings, micro_batch_size=size)
        trainer = trainer_for(run, data)
        trainer._plugins = (Sam(),)
        trainer.train(RoundWork(round=1, seed=3))
        found.append(trainer.trained_values())
    assert max(float((found[0][n] - t).abs().max()) for n, t in found[1].items()) < 1e-5


class Endless(Precision):
    """A loss scale under which every gradient overflows."""

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=math.inf)


def test_where_gradients_overflow_nothing_is_made_of_them(bert, data):
    trainer = one_trainer(bert, data, Sam(), local_steps=2)
    trainer._precision = Endless(torch.device("cpu"), None)
    begun = trainer.trained_values()
    assert trainer.train(RoundWork(round=1, seed=3)).num_steps == 0
    assert all(torch.equal(t, begun[n]) for n, t in trainer.trained_values().items())


class Scaled(Precision):
    """float16's loss scale, and the CPU's arithmetic."""

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu")


def test_no_bit_depends_on_the_loss_scale(bert, data):
    found = []
    for precision in (Precision, Scaled):
        trainer = one_trainer(bert, data, Sam(), local_steps=2)
        trainer._precision = precision(torch.device("cpu"), None)
        trainer.train(RoundWork(round=1, seed=3))
        found.append(trainer.trained_values())
    assert all(torch.equal(t, found[1][n]) for n, t in found[0].items())


def test_an_owner_that_was_not_declared_is_refused(bert, data):
    with pytest.raises(FedLoraError, match="plug-in sam has a step, and its traits") as caught:
        one_trainer(bert, data, Sam(declared=False)).train(RoundWork(round=1, seed=3))
    assert caught.value.reason is Reason.INVALID_CONFIG
