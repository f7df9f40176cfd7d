"""Plug-ins in the training of real, tiny models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.worker_runs import classifier_spec, labelled_rows, trainer_for, worker_run, write_jsonl

from client_worker.data.config import DataConfig
from client_worker.training.plugin_rounds import local_round, snapshot
from client_worker.training.round_work import RoundWork
from client_worker.training.stages import round_stage
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError
from fedlora.runs.method import RuleSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.training import OptimizerName, TrainingSpec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    return DataConfig(path=str(write_jsonl(path, labelled_rows(22))), held_out_fraction=0.0)


def trained(run, data, *plugins: RuleSpec, rounds: int = 1) -> dict[str, torch.Tensor]:
    trainer = trainer_for(replace(run, plugins=plugins), data)
    for round in range(1, rounds + 1):
        trainer.train(RoundWork(round=round, seed=3))
    return trainer.trained_values()


def furthest(one, other) -> float:
    return max(float((one[n] - other[n]).abs().max()) for n in one)


NEUTRAL = [
    RuleSpec(name="fedprox", options={"mu": 0.0}),
    RuleSpec(name="fedprox", options={"mu": 0.0, "space": "product"}),
]


@pytest.mark.parametrize("plugin", NEUTRAL, ids=str)
def test_a_neutral_setting_changes_no_bit_of_training(bert, data, plugin):
    run = worker_run(classifier_spec(bert, lora_dropout=0.1), local_epochs=2.0)
    assert furthest(trained(run, data), trained(run, data, plugin)) == 0


def products(adapter) -> dict[str, torch.Tensor]:
    return {
        a: adapter[a.replace(".lora_A.", ".lora_B.")] @ adapter[a]
        for a in adapter
        if ".lora_A." in a
    }


@pytest.mark.parametrize(("space", "measured"), [("factors", dict), ("product", products)])
def test_fedprox_keeps_training_nearer_to_where_it_began(bert, data, space, measured):
    run = worker_run(classifier_spec(bert), local_epochs=4.0)
    begun = measured(trainer_for(run, data).trained_values())
    free = measured(trained(run, data))
    plugin = RuleSpec(name="fedprox", options={"mu": 100.0, "space": space})
    held = measured(trained(run, data, plugin))
    assert furthest(held, begun) < 0.5 * furthest(free, begun)


def test_a_plug_in_sees_what_is_trained_under_the_names_it_is_saved_with(bert, data):
    for kind in AdapterKind:
        run = worker_run(
            classifier_spec(bert, kind=kind),
            learning_rate=1e-3,
            b_learning_rate_ratio=4.0,
            head_learning_rate=5e-3,
        )
        trainer = trainer_for(run, data)
        stage = round_stage(run.training, RoundPlan())
        model = trainer._model
        given = snapshot(model.named(stage.parts))
        seen = local_round((), model, stage, run.adapter, given)
        saved = trainer.trained_values()
        known = {n for n in saved if "magnitude" not in n}
        assert {*seen.trained} == known
        for name in known:
            assert torch.equal(seen.trained[name].detach(), saved[name])
        assert len(seen.factors) == len(model.shape.layout.modules)
        for name, rate in seen.rates.items():
            fast = name in {b for _, b in seen.factors}
            assert rate == (5e-3 if "classifier" in name else 4e-3 if fast else 1e-3)


def test_sgd_moves_by_the_rate_times_the_gradient(bert, data, monkeypatch):
    run = worker_run(
        classifier_spec(bert),
        optimizer=OptimizerName.SGD,
        local_steps=1,
        max_gradient_norm=0.0,
        learning_rate=0.25,
    )
    seen = {}
    step = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        for group in self.param_groups:
            seen.update({id(p): (p, p.detach().clone(), p.grad.clone()) for p in group["params"]})
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    trained(run, data)
    assert seen
    for parameter, before, gradient in seen.values():
        assert torch.allclose(parameter, before - 0.25 * gradient, rtol=1e-6, atol=1e-9)


def test_momentum_belongs_to_sgd():
    with pytest.raises(FedLoraError, match=r"training\.momentum is 0\.9, and .* adamw"):
        TrainingSpec(momentum=0.9)
    assert TrainingSpec(optimizer=OptimizerName.SGD, momentum=0.9).momentum == 0.9
