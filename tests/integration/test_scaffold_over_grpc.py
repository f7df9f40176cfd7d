"""SCAFFOLD in whole federations: what crosses the wire, and what both sides make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.federation import ScriptedWorker, random_adapter, serving
from support.planned_worker import Recording
from support.runs import run_spec
from support.worker_federation import federate, run_of, same, stored
from support.worker_runs import classifier_spec
from torch import Tensor

from aggregator_service.run_actor import RunActor
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer, TrainingOutcome
from fedlora.adapters.extras import extras_of, without_extras
from fedlora.adapters.names import extra_key
from fedlora.plugins.scaffold import Mode
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import OptimizerName

OPTIMIZERS = {
    Mode.EXACT: {"optimizer": OptimizerName.SGD, "learning_rate": 0.5},
    Mode.DECOUPLED: {"learning_rate": 1e-2},
}


def run_with(bert: Path, mode: Mode, *plugins: RuleSpec, num_rounds: int = 3) -> RunSpec:
    run = run_of(classifier_spec(bert), "fedit", num_rounds=num_rounds, **OPTIMIZERS[mode])
    method = MethodSpec(name="fedit", weighting=RuleSpec(name="uniform"))
    return replace(run, method=method, plugins=plugins)


def scaffold(mode: Mode) -> RuleSpec:
    return RuleSpec(name="scaffold", options={"mode": mode.value})


def close(one: Tensor, other: Tensor) -> bool:
    """But for a few roundings to float32."""
    return torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", Mode)
async def test_c_is_what_all_updates_add_up_to_over_the_number_of_workers(
    tmp_path: Path, bert: Path, recording: Recording, mode: Mode
):
    done = await federate(tmp_path, run_with(bert, mode, scaffold(mode)))
    first, *versions = done.versions
    assert without_extras(first) == first
    total = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    for round, version in enumerate(versions, start=1):
        for update in (u for u in recording.up if u.header.round == round):
            change = extras_of(update.tensors, "scaffold/dc")
            assert change.keys() == first.keys()
            total = {name: t + change[name] for name, t in total.items()}
        c = extras_of(version, "scaffold/c")
        assert c.keys() == first.keys()
        assert all(close(c[name], total[name] / 2) for name in c)
        assert any(float(t.abs().max()) > 0 for t in c.values())
        # What is exported for PEFT has nothing of it.
        assert without_extras(version).keys() == first.keys()
    # Every version that was pulled whole or in part came with c.
    for payload in recording.down:
        expected = bool(payload.header.adapter_version)
        assert bool(extras_of(payload.tensors, "scaffold/c")) is expected


@pytest.mark.parametrize("mode", Mode)
async def test_c_is_the_mean_of_what_the_workers_keep_where_one_of_two_takes_part(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
):
    kept: list[tuple[int, LocalTrainer, dict[str, Tensor]]] = []
    train = LocalTrainer.train

    def noted(trainer: LocalTrainer, work: RoundWork, extras: Any = None) -> TrainingOutcome:
        outcome = train(trainer, work, extras)
        kept.append((work.round, trainer, extras_of(outcome.kept_extras, "scaffold/c_u")))
        return outcome

    monkeypatch.setattr(LocalTrainer, "train", noted)
    spec = run_with(bert, mode, scaffold(mode), num_rounds=4)
    # With this seed both of them are asked.
    rounds = replace(spec.rounds, cohort_size=1, quorum=1, evaluate=False)
    spec = replace(spec, rounds=rounds, seed=2)
    done = await federate(tmp_path, spec, cache_dir=tmp_path / "kept")
    assert [round for round, _, _ in kept] == [1, 2, 3, 4]
    assert len({id(trainer) for _, trainer, _ in kept}) == 2
    own = {id(trainer): dict.fromkeys(done.versions[0], 0.0) for _, trainer, _ in kept}
    for round, trainer, c_u in kept:
        own[id(trainer)] = c_u
        c = extras_of(done.versions[round], "scaffold/c")
        assert c.keys() == c_u.keys()
        assert all(close(t, sum(o[name] for o in own.values()) / 2) for name, t in c.items())


async def round_open(actor: RunActor, round: int) -> tuple[str, ...]:
    """Waits until a round trains; the names of those that it has asked."""
    while actor.state.round < round or actor.state.phase is not RunPhase.TRAINING:
        await actor.wait_for_change(None)
    return tuple(actor.state.cohort)


async def test_c_is_the_mean_over_all_that_ever_joined_however_few_took_part(tmp_path: Path):
    """Rounds of two among four, then six; at last one of them has left."""
    spec = run_spec(num_rounds=6, num_workers=4, cohort_size=2, quorum=2, evaluate=False)
    method = MethodSpec(name="fedit", weighting=RuleSpec(name="uniform"))
    spec = replace(spec, method=method, plugins=(scaffold(Mode.DECOUPLED),))
    given = random_adapter(4, seed=0)
    own: dict[str, dict[str, Tensor]] = {}
    workers: dict[str, ScriptedWorker] = {}
    async with serving(tmp_path, spec) as served:
        actor = served.aggregator.coordinator.run("test")

        async def join(*names: str) -> None:
            for name in names:
                workers[name] = await served.worker(name)
                own[name] = {key: torch.zeros_like(t).double() for key, t in given.items()}

        await join("w-0", "w-1", "w-2", "w-3")
        await workers["w-0"].push(await workers["w-0"].task(), given, num_examples=0)
        asked = set()
        for round in range(1, 7):
            cohort = await round_open(actor, round)
            assert len(cohort) == 2
            asked.update(cohort)
            if round == 4:
                # They are known from here on, and in no cohort before the next.
                await join("w-4", "w-5")
            if round == 5:
                # What it has taught the others stays.
                gone = workers[min({*asked} - {*cohort})]
                await gone.stub.Leave(pb.LeaveRequest(session_token=gone.token), timeout=30)
            for name in cohort:
                seed = 100 * round + int(name[-1])
                change = random_adapter(4, seed=seed)
                own[name] = {key: t + change[key].double() for key, t in own[name].items()}
                extras = {extra_key("scaffold/dc", key): t for key, t in change.items()}
                task = await workers[name].task()
                await workers[name].push(task, {**random_adapter(4, seed=seed + 50), **extras})
            while actor.state.version != round:
                await actor.wait_for_change(None)
            c = extras_of(await stored(served, round), "scaffold/c")
            assert c.keys() == given.keys()
            for key, tensor in c.items():
                mean = sum(kept[key] for kept in own.values()) / len(workers)
                assert close(tensor, mean)
        await served.aggregator.wait_until_settled()
    assert len(asked) > 2


@pytest.mark.parametrize("mode", Mode)
async def test_the_first_round_is_the_uniform_mean_and_the_second_is_not(
    tmp_path: Path, bert: Path, mode: Mode
):
    plain = await federate(tmp_path / "plain", run_with(bert, mode, num_rounds=2))
    with_c = await federate(tmp_path / "c", run_with(bert, mode, scaffold(mode), num_rounds=2))
    assert same(plain.versions[1], without_extras(with_c.versions[1]))
    assert not same(plain.versions[2], without_extras(with_c.versions[2]))


# FedEx-LoRA adds what the factors miss to the base model; FLoRA-NA weighs the factors anew.
@pytest.mark.parametrize("method", ["fedex_lora", "flora_na"])
async def test_it_goes_beside_methods_that_keep_the_basis(tmp_path: Path, bert: Path, method: str):
    spec = run_with(bert, Mode.DECOUPLED, scaffold(Mode.DECOUPLED))
    done = await federate(tmp_path, replace(spec, method=replace(spec.method, name=method)))
    assert len(done.versions) == 4
    assert all(extras_of(version, "scaffold/c") for version in done.versions[1:])


async def test_what_is_exported_is_an_adapter_of_peft(tmp_path: Path, bert: Path):
    from safetensors.torch import load_file

    done = await federate(tmp_path, run_with(bert, Mode.DECOUPLED, scaffold(Mode.DECOUPLED)))
    exported = load_file(done.final / "adapter_model.safetensors")
    assert same(exported, without_extras(done.versions[-1]))
