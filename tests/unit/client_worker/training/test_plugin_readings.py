"""What plug-ins' pages say of training, held on real, tiny models of every adapter kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from support.worker_runs import (
    classifier_spec,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)
from torch import Tensor

from client_worker.data.config import DataConfig
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.extras import extras_of
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.plugins import LocalHooks, LocalRound, PluginDefaults
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.proximal import Space
from fedlora.runs.method import RuleSpec
from fedlora.runs.plan import RoundPlan


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    return DataConfig(path=str(write_jsonl(path, labelled_rows(22))), held_out_fraction=0.0)


@dataclass(frozen=True)
class Noting(PluginDefaults):
    """A plug-in whose rounds and hooks are kept."""

    inner: PluginDefaults
    rounds: list[LocalRound] = field(default_factory=list)
    hooks: list[LocalHooks] = field(default_factory=list)

    name = "noting"

    def local(self, round: LocalRound) -> LocalHooks:
        self.rounds.append(round)
        self.hooks.append(self.inner.local(round))
        return self.hooks[-1]


# --- fedprox ---------------------------------------------------------------------------------


def by_the_book(kind: AdapterKind, mu: float, scaling: float, one, other) -> float:
    """(mu/2) times the squared distance, from dense products of the saved tensors, by their names.

    |s (B A - B_g A_g)|^2 of each module, without HiRA's frozen weight; what is neither A nor B
    (DoRA's magnitudes, the head) keeps its own distance.
    """
    a_of, b_of = ("hira_A", "hira_B") if kind is AdapterKind.HIRA else ("lora_A", "lora_B")
    total, products = 0.0, 0
    for name in one:
        if a_of in name:
            pair = [(x[name.replace(a_of, b_of)].double(), x[name].double()) for x in (one, other)]
            moved = scaling * (pair[0][0] @ pair[0][1] - pair[1][0] @ pair[1][1])
            products += 1
        elif b_of in name:
            continue
        else:
            moved = one[name].double() - other[name].double()
        total += float(moved.square().sum())
    assert products > 0
    assert kind is not AdapterKind.DORA or any("magnitude" in name for name in one)
    return mu / 2 * total


@pytest.mark.parametrize("kind", AdapterKind)
def test_fedprox_measures_products_and_everything_else_number_by_number(bert, data, kind):
    parts = (Part.A, Part.B, *((Part.MAGNITUDE,) if kind is AdapterKind.DORA else ()))
    run = worker_run(classifier_spec(bert, kind=kind), local_steps=3)
    trainer = trainer_for(run, data)
    plugin = Noting(FedProx(mu=0.3, space=Space.PRODUCT))
    trainer._plugins = (plugin,)
    begun = trainer.trained_values()
    trainer.train(RoundWork(round=1, seed=3, plan=RoundPlan(trained=parts)))
    moved = trainer.trained_values()
    (round,), (hooks,) = plugin.rounds, plugin.hooks
    assert round.trained.keys() == moved.keys()
    expected = by_the_book(kind, 0.3, run.adapter.scaling(trainer.rank), moved, begun)
    assert expected > 1e-3
    assert float(hooks.penalty().detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("space", ["factors", "product"])
@pytest.mark.parametrize("kind", AdapterKind)
def test_fedprox_holds_every_kind_nearer_to_where_it_began(bert, data, kind, space):
    parts = (Part.A, Part.B, *((Part.MAGNITUDE,) if kind is AdapterKind.DORA else ()))
    run = worker_run(classifier_spec(bert, kind=kind), local_steps=4)
    far = []
    for mu in (0.0, 300.0):
        plugins = (RuleSpec(name="fedprox", options={"mu": mu, "space": space}),)
        trainer = trainer_for(replace(run, plugins=plugins), data)
        begun = trainer.trained_values()
        trainer.train(RoundWork(round=1, seed=3, plan=RoundPlan(trained=parts)))
        moved = trainer.trained_values()
        far.append(by_the_book(kind, 1.0, run.adapter.scaling(trainer.rank), moved, begun))
    assert 0 < far[1] < 0.7 * far[0]


@dataclass(frozen=True)
class Slope(PluginDefaults):
    """A penalty that is steep, and equally so for every number."""

    name = "slope"

    def local(self, round: LocalRound) -> LocalHooks:
        return LocalHooks(penalty=lambda: 1e4 * sum(t.sum() for t in round.trained.values()))


def test_adamw_divides_a_penaltys_gradient_as_it_does_the_losss(bert, data):
    run = worker_run(classifier_spec(bert), local_steps=1, max_gradient_norm=0.0)
    trainer = trainer_for(run, data)
    trainer._plugins = (Slope(),)
    begun = trainer.trained_values()
    trainer.train(RoundWork(round=1, seed=3))
    # Adam's first step is the rate, however steep; beside it the penalty would move by 1e4 rates.
    for name, tensor in trainer.trained_values().items():
        assert torch.allclose(tensor - begun[name], torch.tensor(-1e-2), rtol=1e-3)


# --- clip ------------------------------------------------------------------------------------


def test_clip_leaves_what_other_plug_ins_send(bert, data):
    run = worker_run(classifier_spec(bert), local_steps=2)
    clip = RuleSpec(name="clip", options={"max_norm": 1e-3})
    found = []
    for plugins in ((RuleSpec(name="scaffold"),), (clip, RuleSpec(name="scaffold"))):
        trainer = trainer_for(replace(run, plugins=plugins), data)
        begun = trainer.trained_values()
        outcome = trainer.train(RoundWork(round=1, seed=3))
        change = extras_of(outcome.sent_extras, "scaffold/dc")
        moved = {n: t - begun[n] for n, t in trainer.trained_values().items()}
        found.append((change, moved))
    (free, went), (clipped, held) = found
    assert length(went) > 0.1
    assert length(held) == pytest.approx(1e-3, rel=1e-3)
    assert all(torch.equal(tensor, clipped[name]) for name, tensor in free.items())


def length(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors.values()]).sum().sqrt())


# --- ditto -----------------------------------------------------------------------------------


@contextmanager
def texts_seen(trainer: LocalTrainer) -> Iterator[list[list[tuple[int, ...]]]]:
    """The token ids of each forward pass, padding left out."""
    passes: list[list[tuple[int, ...]]] = []

    def note(_module, _arguments, inputs) -> None:
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        passes.append([tuple(ids[mask].tolist()) for ids, mask in rows])

    handle = trainer.module.register_forward_pre_hook(note, with_kwargs=True)
    yield passes
    handle.remove()


def test_ditto_makes_as_many_steps_over_the_same_data_in_another_order(bert, data):
    run = worker_run(classifier_spec(bert), local_epochs=2.0)
    trainer = trainer_for(replace(run, plugins=(RuleSpec(name="ditto"),)), data)
    with texts_seen(trainer) as round:
        outcome = trainer.train(RoundWork(round=1, seed=3))
    with texts_seen(trainer) as own:
        trainer.train_own(RoundWork(round=1, seed=3), None)
    assert len(own) == len(round) == outcome.num_steps == 12
    assert sorted(t for texts in own for t in texts) == sorted(t for p in round for t in p)
    assert own != round
