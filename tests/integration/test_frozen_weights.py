"""Methods that read the base model's frozen weights on the server, in a federation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import normal
from support.federation import serving
from support.planned_worker import PlannedWorker
from support.runs import LAYOUT, run_spec
from support.surrogate_reference import unit_rows

from aggregator_service.aggregation.base_weights import BaseWeights
from fedlora.adapters.names import Part, part_key
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError
from fedlora.proto.v1 import admin_pb2, run_pb2
from fedlora.runs.method import MethodSpec
from fedlora.tensors.manifest import DataType

FROZEN = {
    f"{m.path}.weight": normal(70 + i, m.out_features, m.in_features).float()
    for i, m in enumerate(LAYOUT.modules)
}


def model(folder, tensors=FROZEN):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def layout_of(folder):
    with BaseWeights(folder) as weights:
        return replace(LAYOUT, base_fingerprint=weights.fingerprint(trained=("classifier",)))


def spec_of(kind, **options):
    spec = run_spec(num_workers=2, num_rounds=1)
    adapter = replace(spec.adapter, kind=kind)
    return replace(spec, adapter=adapter, method=MethodSpec(name="flora_na", options=options))


async def one_round(served, layout, kind):
    """Two workers, one round; what each was given and sent, by worker."""
    workers = [PlannedWorker(served.federation, f"w-{i}", layout, seed=i) for i in range(2)]
    for worker in workers:
        await worker.join()
    parts = (Part.A, Part.B) + ((Part.MAGNITUDE,) if kind is AdapterKind.DORA else ())
    manifest = layout.manifest(workers[0].rank, DataType.F32, kind=kind, parts=parts)
    await workers[0].initialize(
        await workers[0].task(), {t.name: t.shape for t in manifest.tensors}
    )
    sent = {}
    for worker in workers:
        train = worker.train
        worker.train = lambda plan, train=train, name=worker.name: sent.setdefault(
            name, train(plan)
        )
        await worker.work()
    return sent


async def test_hira_is_fitted_in_the_norm_of_the_frozen_weight(tmp_path):
    folder = model(tmp_path / "base")
    spec = spec_of(AdapterKind.HIRA, hadamard="weighted")
    async with asyncio.timeout(60), serving(tmp_path, spec, base_weights=folder) as served:
        await one_round(served, layout_of(folder), AdapterKind.HIRA)
        actor = served.aggregator.coordinator.run("test")
        while actor.state.version != 1:
            await actor.wait_for_change(None)
        record = await served.aggregator.coordinator.adapter(actor, 1)
    assert {m["weighted_fit"] for path, m in record.measurements.items() if path} == {1.0}


async def test_doras_magnitudes_are_those_of_the_mean_weight(tmp_path):
    folder = model(tmp_path / "base")
    spec = spec_of(AdapterKind.DORA, magnitudes="least_squares")
    async with asyncio.timeout(60), serving(tmp_path, spec, base_weights=folder) as served:
        sent = await one_round(served, layout_of(folder), AdapterKind.DORA)
        actor = served.aggregator.coordinator.run("test")
        while actor.state.version != 1:
            await actor.wait_for_change(None)
        record = await served.aggregator.coordinator.adapter(actor, 1)
        published = load_file(served.aggregator.coordinator.blobs.path(record.digest))
    scale = spec.adapter.scaling(spec.adapter.r)
    # num_examples are 10 and 20.
    shares = {"w-0": 1 / 3, "w-1": 2 / 3}
    for module in LAYOUT.modules:
        w0 = FROZEN[f"{module.path}.weight"].double()

        def direction(tensors, path=module.path, w0=w0):
            a, b = (tensors[part_key(path, part)].double() for part in (Part.A, Part.B))
            return unit_rows(w0 + scale * b @ a)

        key = part_key(module.path, Part.MAGNITUDE)
        mean = sum(
            shares[name] * tensors[key].double()[:, None] * direction(tensors)
            for name, tensors in sent.items()
        )
        expected = (direction(published) * mean).sum(dim=1)
        torch.testing.assert_close(published[key].double(), expected, rtol=1e-6, atol=1e-6)


async def test_weights_of_another_model_fail_the_run_and_say_so(tmp_path):
    folder = model(tmp_path / "base")
    other = model(tmp_path / "other", {k: v + 1 for k, v in FROZEN.items()})
    spec = spec_of(AdapterKind.HIRA, hadamard="weighted")
    async with asyncio.timeout(60), serving(tmp_path, spec, base_weights=other) as served:
        await one_round(served, layout_of(folder), AdapterKind.HIRA)
        await served.aggregator.wait_until_settled()
        run = (await served.admin.GetRun(admin_pb2.GetRunRequest(run="test"))).run
    assert run.phase == run_pb2.RUN_PHASE_FAILED
    assert "fingerprint" in run.reason
    assert str(other) in run.reason


async def test_without_frozen_weights_the_run_is_refused(tmp_path):
    spec = spec_of(AdapterKind.HIRA, hadamard="weighted")
    with pytest.raises(FedLoraError, match="reads the frozen weights") as caught:
        async with serving(tmp_path, spec):
            raise AssertionError("it serves")
    assert "server.base_weights" in caught.value.hint


async def test_a_folder_without_a_model_is_refused_at_the_start(tmp_path):
    with pytest.raises(FedLoraError, match="no base weights at"):
        async with serving(tmp_path, None, base_weights=tmp_path):
            raise AssertionError("it serves")
