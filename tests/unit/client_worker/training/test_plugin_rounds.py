"""Plug-ins in the training of real, tiny models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from support.worker_runs import (
    LABELS,
    causal_spec,
    classifier_spec,
    completion_rows,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)

from client_worker.data.config import DataConfig
from client_worker.training.plugin_rounds import local_round, snapshot
from client_worker.training.round_work import RoundWork
from client_worker.training.stages import round_stage
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import LocalHooks, PluginDefaults, Traits
from fedlora.plugins.fedlc import FedLC
from fedlora.runs.method import RuleSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.tasks import EvaluationScope
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
    RuleSpec(name="fedlc", options={"tau": 0.0}),
]


@pytest.mark.parametrize("plugin", NEUTRAL, ids=str)
def test_a_neutral_setting_changes_no_bit_of_training(bert, data, plugin):
    run = worker_run(classifier_spec(bert, lora_dropout=0.1), local_epochs=2.0)
    assert furthest(trained(run, data), trained(run, data, plugin)) == 0


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


# --- a loss of one's own -----------------------------------------------------------------


def skewed(tmp_path, *, absent: str = "net") -> DataConfig:
    rows = [row for row in labelled_rows(30) if row["label"] != absent]
    few = [row for row in rows if row["label"] != LABELS[0]] + rows[:1]
    return DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", few)), held_out_fraction=0.0)


def test_fedlc_trains_by_the_workers_own_counts(bert, tmp_path):
    trainer = trainer_for(worker_run(classifier_spec(bert)), skewed(tmp_path))
    seen_by = []
    plugin = FedLC()
    trainer._plugins = (Noting(plugin, seen_by),)
    trainer.train(RoundWork(round=1, seed=3))
    assert [round.class_counts for round in seen_by] == [(1, 10, 0)]


@dataclass(frozen=True)
class Noting(PluginDefaults):
    """A plug-in whose rounds are noted."""

    inner: PluginDefaults
    noted: list

    name = "noting"

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def local(self, round):
        self.noted.append(round)
        return self.inner.local(round)


def test_a_calibrated_step_is_the_same_however_it_is_cut_into_forward_passes(bert, tmp_path):
    plugin = RuleSpec(name="fedlc", options={"tau": 0.5})
    settings = {"optimizer": OptimizerName.SGD, "learning_rate": 0.1, "batch_size": 5}
    whole = worker_run(classifier_spec(bert), **settings)
    cut = worker_run(classifier_spec(bert), **settings, micro_batch_size=2)
    data = skewed(tmp_path)
    one, other, plain = (
        trained(whole, data, plugin),
        trained(cut, data, plugin),
        trained(whole, data),
    )
    assert furthest(one, other) < 1e-5
    assert furthest(one, plain) > 1e-2


@pytest.mark.parametrize(("tau", "moves"), [(0.05, True), (1.0, False)])
def test_a_class_that_is_not_there_stays_unless_adam_makes_full_steps_of_next_to_nothing(
    bert, tmp_path, tau: float, moves: bool
):
    run = worker_run(classifier_spec(bert), max_gradient_norm=0.0)
    data = skewed(tmp_path)
    name, net = "base_model.model.classifier.bias", LABELS.index("net")
    before = trainer_for(run, data).trained_values()[name][net]
    after = trained(run, data, RuleSpec(name="fedlc", options={"tau": tau}))[name][net]
    assert (float((after - before).abs()) > 1e-2) == moves
    assert moves or after == before


def test_what_a_worker_trains_for_itself_has_the_plain_loss(bert, tmp_path):
    data, run = skewed(tmp_path), worker_run(classifier_spec(bert))
    ditto, fedlc = RuleSpec(name="ditto"), RuleSpec(name="fedlc")
    one, other = (
        trainer_for(replace(run, plugins=plugins), data) for plugins in ((ditto,), (ditto, fedlc))
    )
    own = [t.train_own(RoundWork(round=1, seed=3), None) for t in (one, other)]
    assert furthest(*own) == 0


def test_the_loss_that_is_told_is_the_one_that_is_trained(bert, tmp_path):
    data, run = skewed(tmp_path), worker_run(classifier_spec(bert), local_steps=1)
    calibrated = replace(run, plugins=(RuleSpec(name="fedlc"),))
    one, other = (
        trainer_for(r, data).train(RoundWork(round=1, seed=3)).metrics["train_loss"]
        for r in (run, calibrated)
    )
    assert abs(one - other) > 1e-3


def test_nothing_is_scored_by_the_loss_that_training_has_instead(bert, tmp_path):
    rows = labelled_rows(40, test=9)
    few = [row for row in rows if row["label"] != "net" or row["split"] == "test"]
    path = write_jsonl(tmp_path / "a.jsonl", few)
    data = DataConfig(path=str(path), split_column="split", held_out_fraction=0.2)
    run = worker_run(classifier_spec(bert))
    calibrated = trainer_for(replace(run, plugins=(RuleSpec(name="fedlc"),)), data)
    calibrated.train(RoundWork(round=1, seed=3))
    plain = trainer_for(run, data)
    plain.load_adapter(calibrated.adapter())
    assert calibrated.evaluate(EvaluationScope.GLOBAL, round=1) == plain.evaluate(
        EvaluationScope.GLOBAL, round=1
    )
    # Labels that the worker has none of are tested: by the calibrated loss they cost 100 each.
    _, test = calibrated.evaluate(EvaluationScope.GLOBAL, round=1)
    assert test.label_counts.present[LABELS.index("net")] > 0
    assert test.metrics["loss"] < 5


@dataclass(frozen=True, kw_only=True)
class Own(PluginDefaults):
    """Cross-entropy in other words."""

    declared: bool = True

    name = "own"

    @property
    def traits(self) -> Traits:
        return Traits(replaces_criterion=self.declared)

    def local(self, round):
        assert round.class_counts == ()

        def criterion(logits_NV, targets_N):
            assert logits_NV.dtype == torch.float32
            assert int(targets_N.min()) >= 0
            return -logits_NV.log_softmax(-1)[torch.arange(len(targets_N)), targets_N].sum()

        return LocalHooks(criterion=criterion)


@pytest.mark.parametrize("micro", [0, 2])
def test_a_language_models_targets_come_one_by_one_and_without_those_that_do_not_count(
    llama, tmp_path, micro: int
):
    path = write_jsonl(tmp_path / "completions.jsonl", completion_rows(10))
    data = DataConfig(path=str(path), held_out_fraction=0.0)
    settings = {"optimizer": OptimizerName.SGD, "learning_rate": 0.1, "batch_size": 5}
    run = worker_run(causal_spec(llama), **settings)
    plain = trained(run, data)
    trainer = trainer_for(worker_run(causal_spec(llama), **settings, micro_batch_size=micro), data)
    begun = trainer.trained_values()
    trainer._plugins = (Own(),)
    trainer.train(RoundWork(round=1, seed=3))
    assert furthest(trainer.trained_values(), plain) < 1e-3 * furthest(plain, begun)


def test_a_criterion_that_was_not_declared_is_refused(llama, tmp_path):
    path = write_jsonl(tmp_path / "completions.jsonl", completion_rows(4))
    data = DataConfig(path=str(path), held_out_fraction=0.0)
    trainer = trainer_for(worker_run(causal_spec(llama)), data)
    trainer._plugins = (Own(declared=False),)
    with pytest.raises(FedLoraError, match="plug-in own has a criterion, and its traits") as caught:
        trainer.train(RoundWork(round=1, seed=3))
    assert caught.value.reason is Reason.INVALID_CONFIG
