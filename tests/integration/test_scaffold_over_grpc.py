"""SCAFFOLD in whole federations: what crosses the wire, and what both sides make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.planned_worker import Recording
from support.worker_federation import federate, run_of, same
from support.worker_runs import classifier_spec
from torch import Tensor

from fedlora.adapters.extras import extras_of, without_extras
from fedlora.plugins.scaffold import Mode
from fedlora.runs.method import MethodSpec, RuleSpec
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
