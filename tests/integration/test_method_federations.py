"""Every method in a real federation: what crosses the wire, and that the certificate is right.

Scripted workers follow the plans that the server sends them; a recording servicer notes every
tensor on its way. What the round should have come to is then computed once more from those
tensors, densely and in float64, by the definitions and by nothing of the server's.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from safetensors.torch import load_file
from support.builders import METRICS
from support.federation import Served, reason_of, serving
from support.finished_federation import (
    Finished,
    check_certificates,
    check_final,
    check_frozen_and_private,
    check_traffic,
    check_wire,
    versions_of,
)
from support.planned_worker import PlannedWorker, Recording
from support.runs import LAYOUT, run_spec
from torch import Tensor

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.gauge import NEAREST
from aggregator_service.aggregation.registry import (
    COMPRESSIONS,
    METHODS,
    SERVER_OPTIMIZERS,
    WEIGHTINGS,
    create_recipe,
)
from aggregator_service.aggregation.traffic import traffic_of
from aggregator_service.transport import server as transport_server
from fedlora.adapters.names import Factor, Part, lora_key, parse_key
from fedlora.adapters.spec import AdapterKind
from fedlora.proto.v1 import admin_pb2, run_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.method import Gauge, MethodSpec, RuleSpec
from fedlora.runs.plan import RoundPlan, plan_for
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Role
from fedlora.tensors.manifest import DataType
from fedlora.wire.convert import from_message

NAMES = ("w-0", "w-1", "w-2")


async def federate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: RunSpec,
    *,
    ranks: tuple[int, ...] = (0, 0, 0),
    refiner: bool = False,
) -> Finished:
    recording = Recording()
    monkeypatch.setattr(transport_server, "FederationServicer", recording.servicer())
    plans = create_recipe(spec.method).plans(spec.adapter.kind)
    async with serving(tmp_path, spec, export_dir=tmp_path / "runs") as served:
        workers = await _joined(served, ranks, refiner=refiner)
        parties = [w for w in workers.values() if w.role is Role.PARTY]
        first = parties[0]
        task = await first.task()
        assert task.kind == pb.TASK_KIND_INITIALIZE
        parts = [run_pb2.Part.Name(p).removeprefix("PART_").lower() for p in task.plan.trained]
        manifest = LAYOUT.manifest(
            first.rank, DataType.F32, kind=spec.adapter.kind, parts=[Part(p) for p in parts]
        )
        await first.initialize(task, {t.name: t.shape for t in manifest.tensors})
        for _ in range(spec.rounds.num_rounds):
            for worker in parties:
                assert (await worker.work()).kind == pb.TASK_KIND_TRAIN
            if refiner:
                assert (await workers["server"].work()).kind == pb.TASK_KIND_REFINE
            for worker in parties:
                assert (await worker.work()).kind == pb.TASK_KIND_EVALUATE
        coordinator = served.aggregator.coordinator
        records = [
            await coordinator.adapter(coordinator.run("test"), version)
            for version in range((coordinator.run("test").state.version or 0) + 1)
        ]
        # As stored: a worker's copy would be at the worker's rank.
        versions = [load_file(coordinator.blobs.path(r.digest)) for r in records]
        await served.aggregator.wait_until_settled()
        reports = [
            (
                await served.admin.GetRoundReport(
                    admin_pb2.GetRoundReportRequest(run="test", round=r)
                )
            ).report
            for r in range(1, spec.rounds.num_rounds + 1)
        ]
    final = load_file(tmp_path / "runs" / "test" / "final" / "adapter_model.safetensors")
    return Finished(spec, plans, recording, workers, reports, versions, final)


async def _joined(
    served: Served, ranks: tuple[int, ...], *, refiner: bool
) -> dict[str, PlannedWorker]:
    workers = {
        name: PlannedWorker(served.federation, name, LAYOUT, seed=i) for i, name in enumerate(NAMES)
    }
    if refiner:
        workers = {
            "server": PlannedWorker(
                served.federation, "server", LAYOUT, role=Role.SERVER_DATA, seed=9
            ),
            **workers,
        }
    for worker, rank in zip(workers.values(), (0,) * refiner + ranks, strict=False):
        await worker.join(max_rank=rank)
    return workers


def spec_of(name: str, kind: AdapterKind = AdapterKind.LORA, *, rank: int = 4) -> RunSpec:
    cycle = len(compose(METHODS[name]).plans(kind))
    spec = run_spec(method=name, num_workers=3, num_rounds=max(3, 2 * cycle), rank=rank)
    # One of the scripted workers prunes itself down to rank 2.
    options = {"min_rank": 2} if name == "hetlora" else {}
    adapter = replace(spec.adapter, kind=kind)
    return replace(spec, adapter=adapter, method=MethodSpec(name=name, options=options))


async def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec, **options: object
) -> Finished:
    givens: list[dict[str, dict[str, Tensor]]] = []
    train = PlannedWorker.train

    def noted(self: PlannedWorker, plan: RoundPlan) -> dict[str, Tensor]:
        sent = train(self, plan)
        if self.role is Role.PARTY:
            if not givens or self.name in givens[-1]:
                givens.append({})
            givens[-1][self.name] = dict(self.given)
        return sent

    monkeypatch.setattr(PlannedWorker, "train", noted)
    async with asyncio.timeout(120):
        done = await federate(tmp_path, monkeypatch, spec, **options)
    check_wire(done)
    check_traffic(done)
    check_frozen_and_private(done)
    check_certificates(done, givens)
    check_final(done)
    return done


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_every_method_in_a_federation(name, tmp_path, monkeypatch):
    # At rank 2 it takes some rounds until a stack of changes is as large as a layer.
    rank = 2 if compose(METHODS[name]).properties.changes_base else 4
    await check(tmp_path, monkeypatch, spec_of(name, rank=rank))


@pytest.mark.parametrize(
    ("name", "options"),
    [("fedlora_optimizer", {"global_stage": "federated"}), ("rac_lora", {"trained": "a"})],
)
async def test_an_option_that_changes_the_traffic_is_told(name, options, tmp_path, monkeypatch):
    method = MethodSpec(name=name, options=options)
    plain, chosen = traffic_of(METHODS[name]), traffic_of(create_recipe(method).method)
    assert plain.up != chosen.up
    done = await check(tmp_path, monkeypatch, replace(spec_of(name), method=method))
    assert len({p.header.round for p in done.recording.up}) > len(chosen.up)


MIXED = sorted(n for n, m in METHODS.items() if compose(m).properties.mixed_ranks)


@pytest.mark.parametrize("ranks", [(0, 3, 2), (3, 0, 2)])
@pytest.mark.parametrize("name", MIXED)
async def test_every_method_for_mixed_ranks_takes_them(name, ranks, tmp_path, monkeypatch):
    # The first worker makes version 0, at its own rank.
    await check(tmp_path, monkeypatch, spec_of(name), ranks=ranks)


REFINED = sorted(n for n, m in METHODS.items() if any(plan.refined for plan in compose(m).plans()))


@pytest.mark.parametrize("name", REFINED)
async def test_a_stage_on_the_servers_data_changes_only_what_it_may(name, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, spec_of(name), refiner=True)
    for report in done.reports:
        combined, refined = versions_of(done, report)
        parts = plan_for(done.plans, report.round).refined
        for key, tensor in done.versions[combined].items():
            part = parse_key(key).part
            if part is not None:
                assert torch.equal(tensor, done.versions[refined][key]) == (part not in parts)


KINDS = sorted(
    (n, kind)
    for n, m in METHODS.items()
    for kind in compose(m).properties.kinds - {AdapterKind.LORA}
)


@pytest.mark.parametrize(("name", "kind"), KINDS)
async def test_every_family_a_method_takes_goes_through_it(name, kind, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, spec_of(name, kind))
    keys = set(done.final)
    suffix = {"dora": ".lora_magnitude_vector", "hira": ".hira_A"}[kind.value]
    assert sum(k.endswith(suffix) for k in keys) == len(LAYOUT.modules)


def with_rule(method: str, **rules: str) -> RunSpec:
    chosen = {key: RuleSpec(name=value) for key, value in rules.items()}
    return replace(spec_of(method), method=MethodSpec(name=method, **chosen))


@pytest.mark.parametrize("rule", sorted(WEIGHTINGS))
async def test_every_weighting_rule_in_a_federation(rule, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, with_rule("fedit", weighting=rule))
    examples = {"w-0": 10, "w-1": 20, "w-2": 30}
    by_data = {name: n / 60 for name, n in examples.items()}
    found = {u.worker: u.weight for u in done.reports[-1].updates}
    assert all(weight >= 0 for weight in found.values())
    if rule in ("num_examples", "loss_reduction", "tilted", "bound_gap", "rank_aware"):
        # The scripted workers have one rank, and send one value of every metric.
        assert found == pytest.approx(by_data)
    else:
        assert found != pytest.approx(by_data, rel=1e-3)


@pytest.mark.parametrize("rule", sorted(SERVER_OPTIMIZERS))
async def test_every_server_optimiser_in_a_federation(rule, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, with_rule("fedit", server_optimizer=rule))
    optimizer = SERVER_OPTIMIZERS[rule]
    memory: dict[str, dict[str, Tensor]] = {}
    for report in done.reports:
        updates = {
            p.header.task_id.rsplit("/", 1)[-1]: p.tensors
            for p in done.recording.up
            if p.header.round == report.round
        }
        before, after = done.versions[report.round - 1], done.versions[report.round]
        for key, tensor in before.items():
            mean = sum(u.weight * updates[u.worker][key].double() for u in report.updates)
            # The scale is in B while it moves: adaptive steps are not linear in it.
            scale = 1.0
            if parse_key(key).part is Part.B:
                scale = done.spec.adapter.scaling(done.spec.adapter.r)
            moved, kept = optimizer.step(scale * tensor.double(), scale * mean, memory.get(key, {}))
            memory[key] = dict(kept)
            expected = moved / scale
            torch.testing.assert_close(after[key].double(), expected, rtol=1e-5, atol=1e-6)
            assert not torch.equal(after[key].double(), mean) or rule == "fedavgm"


@pytest.mark.parametrize("rule", sorted(COMPRESSIONS))
async def test_every_compression_rule_in_a_federation(rule, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, with_rule("fedit", compression=rule))
    changes_base = create_recipe(done.spec.method).properties.changes_base
    based = any(parse_key(k).part is Part.BASE_A for k in done.versions[-1])
    assert based == changes_base


@pytest.mark.parametrize("gauge", [g for g in Gauge if g is not Gauge.OWN])
async def test_every_gauge_in_a_federation(gauge, tmp_path, monkeypatch):
    spec = replace(spec_of("fedit"), method=MethodSpec(name="fedit", gauge=gauge))
    done = await check(tmp_path, monkeypatch, spec)
    assert all(plan.keeps_basis == (gauge in NEAREST) for plan in done.plans)
    last = done.reports[-1]
    shares = {u.worker: u.weight for u in last.updates}
    sent = [
        (shares[p.header.task_id.rsplit("/", 1)[-1]], p.tensors)
        for p in done.recording.up
        if p.header.round == last.round
    ]
    for module in LAYOUT.modules:
        a, b = (lora_key(module.path, factor) for factor in (Factor.LORA_A, Factor.LORA_B))
        mean_a, mean_b = (sum(w * tensors[key].double() for w, tensors in sent) for key in (a, b))
        found = done.final[b].double() @ done.final[a].double()
        torch.testing.assert_close(found, mean_b @ mean_a, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(done.final[a].double(), mean_a, rtol=1e-3)


async def test_a_mask_that_does_not_fit_is_refused_at_the_door(tmp_path, monkeypatch):
    spec = spec_of("lora_a2")
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        workers = await _joined(served, (0, 0, 0), refiner=False)
        first = workers["w-0"]
        manifest = LAYOUT.manifest(first.rank, DataType.F32, parts=(Part.A, Part.B))
        await first.initialize(await first.task(), {t.name: t.shape for t in manifest.tensors})
        task = await first.task()
        await first.bring(task.adapter_version)
        tensors = first.train(from_message(task.plan, RoundPlan))
        masks = [key for key in tensors if parse_key(key).part is Part.SELECTED]
        for bad in (torch.ones(first.rank), torch.full((first.rank,), 0.5)):
            wrong = tensors | {masks[0]: bad}
            if torch.equal(bad, tensors[masks[0]]):
                continue
            with pytest.raises(grpc.RpcError) as caught:
                await first.push(task, wrong, metrics=METRICS)
            assert reason_of(caught.value) == "INVALID_PAYLOAD"
            assert "w-0" in caught.value.details()
            assert "mask" in caught.value.details()
        # Nothing of it is left, and the honest update is taken.
        assert not served.aggregator.coordinator.run("test").state.updates
        await first.push(task, tensors, metrics=METRICS)
        assert set(served.aggregator.coordinator.run("test").state.updates) == {"w-0"}
