"""Federations of scripted workers over real gRPC, and what must hold of every one of them.

The workers follow the plans that the server sends them; a recording servicer notes every tensor on
its way. What a round should have come to is then computed once more from those tensors, densely
and in float64, by the definitions and by nothing of the server's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.federation import Served, serving
from support.planned_worker import PlannedWorker, Recording
from support.runs import LAYOUT, run_spec
from support.traffic import evaluate
from torch import Tensor

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.registry import METHODS, create_recipe
from aggregator_service.aggregation.traffic import traffic_of
from aggregator_service.transport import server as transport_server
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.spec import AdapterKind
from fedlora.proto.v1 import admin_pb2, run_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.method import MethodSpec
from fedlora.runs.plan import RoundPlan, Selection, plan_for
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Role
from fedlora.tensors.manifest import DataType

NAMES = ("w-0", "w-1", "w-2")


@dataclass
class Finished:
    """A federation that has run to its end."""

    spec: RunSpec
    plans: tuple[RoundPlan, ...]
    recording: Recording
    workers: dict[str, PlannedWorker]
    reports: list[run_pb2.RoundReport]
    versions: list[dict[str, Tensor]]
    """every version whole, by version"""
    final: dict[str, Tensor]
    """as exported for PEFT"""
    givens: list[dict[str, dict[str, Tensor]]]
    """what each worker held when it trained, by round and worker"""

    def updates(self, round: int) -> dict[str, dict[str, Tensor]]:
        """What the parties sent in a round, by worker."""
        return {
            p.header.task_id.rsplit("/", 1)[-1]: p.tensors
            for p in self.recording.up
            if p.header.round == round and "/refine/" not in p.header.task_id
        }


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
    givens = _noted_givens(monkeypatch)
    plans = create_recipe(spec.method).plans(spec.adapter.kind)
    async with serving(tmp_path, spec, export_dir=tmp_path / "runs") as served:
        workers = await joined(served, ranks, refiner=refiner)
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
    return Finished(spec, plans, recording, workers, reports, versions, final, givens)


def _noted_givens(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, dict[str, Tensor]]]:
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
    return givens


async def joined(
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


# --- what a round should have come to, densely ---------------------------------------------


def parts_of(tensors: dict[str, Tensor], path: str) -> dict[Part, Tensor]:
    return {
        parse_key(k).part: v.double()
        for k, v in tensors.items()
        if parse_key(k).path == path and parse_key(k).part is not None
    }


class Dense:
    """The definitions, on d x k matrices."""

    def __init__(self, finished: Finished) -> None:
        self.done = finished

    def scale(self, rank: int) -> float:
        return self.done.spec.adapter.scaling(rank)

    def product(self, parts: dict[Part, Tensor]) -> Tensor:
        a, b = parts[Part.A], parts[Part.B]
        middle = parts.get(Part.CORE, torch.eye(a.shape[0], dtype=torch.float64))
        return self.scale(a.shape[0]) * b @ middle @ a

    def base(self, parts: dict[Part, Tensor]) -> Tensor | float:
        return parts[Part.BASE_B] @ parts[Part.BASE_A] if Part.BASE_A in parts else 0.0

    def factors(self, parts: dict[Part, Tensor]) -> tuple[Tensor, Tensor]:
        """A, and B with the scale and the core in it."""
        a, b = parts[Part.A], self.scale(parts[Part.A].shape[0]) * parts[Part.B]
        return a, b @ parts[Part.CORE] if Part.CORE in parts else b

    def completed(
        self, given: dict[Part, Tensor], sent: dict[Part, Tensor], plan: RoundPlan
    ) -> tuple[Tensor, Tensor]:
        """A worker's factors, from what it was given and what it sent."""
        if plan.private:
            return sent[Part.A], torch.eye(len(sent[Part.A]), dtype=torch.float64)
        parts = {p: given[p] for p in (Part.A, Part.B, Part.CORE) if p in given}
        if plan.selection is Selection.ALL:
            rank = next((t.shape[0] for p, t in sent.items() if p is Part.A), None)
            if rank is not None and rank < parts[Part.A].shape[0] and Part.B not in sent:
                parts[Part.B] = parts[Part.B][:, :rank]
            return self.factors({**parts, **sent})
        chosen = sent[Part.SELECTED].nonzero().flatten()
        for part in plan.trained:
            whole = parts[part].clone()
            if plan.selection is Selection.REST_ZERO:
                whole.zero_()
            if part is Part.A and len(chosen):
                whole[chosen] = sent[part]
            if part is Part.B and len(chosen):
                whole[:, chosen] = sent[part]
            parts[part] = whole
        return self.factors(parts)

    def began(self, given: dict[Part, Tensor], rank: int, plan: RoundPlan) -> Tensor:
        """The product that a worker went on from: at the rank that it came back with."""
        a, b = self.factors(given)
        return a if plan.private else b[:, :rank] @ a[:rank]


def mean_of(members: list[tuple[float, Tensor, Tensor]]) -> Tensor:
    """The product of the means of A and of B, those of lower rank with zeros below."""
    largest = max(a.shape[0] for _, a, _ in members)
    mean_a, mean_b = 0.0, 0.0
    for weight, a, b in members:
        more = largest - a.shape[0]
        mean_a = mean_a + weight * torch.nn.functional.pad(a, (0, 0, 0, more))
        mean_b = mean_b + weight * torch.nn.functional.pad(b, (0, more))
    return mean_b @ mean_a


def check_certificates(done: Finished) -> None:
    """Each round's certificate against the dense figures."""
    dense = Dense(done)
    server_delta: dict[str, Tensor] = {}
    for report in done.reports:
        plan = plan_for(done.plans, report.round)
        weights = {u.worker: u.weight for u in report.updates}
        assert sum(weights.values()) == pytest.approx(1.0)
        before = done.versions[report.base_version]
        after = done.versions[min(v for v in versions_of(done, report))]
        updates = done.updates(report.round)
        for entry in report.certificate.modules:
            path = entry.module
            old, new = parts_of(before, path), parts_of(after, path)
            members: list[tuple[float, Tensor, Tensor]] = []
            change: Tensor | float = 0.0
            for worker, weight in weights.items():
                given = parts_of(done.givens[report.round - 1][worker], path)
                a, b = dense.completed(given, parts_of(updates[worker], path), plan)
                members.append((weight, a, b))
                change = change + weight * (b @ a - dense.began(given, len(a), plan))
            target = sum(weight * b @ a for weight, a, b in members)
            averaged = float((mean_of(members) - target).norm())
            if done.spec.method.name == "fedhl":
                # The server's delta begins as what version 0 is, and gains the increments.
                target = server_delta.get(path, dense.product(old)) + change
                server_delta[path] = target
                change = target - dense.product(old)
            if plan.private:
                published = new[Part.A]
            else:
                published = dense.product(new) + dense.base(new) - dense.base(old)
            error = float((published - target).norm() / target.norm())
            assert entry.ideal_norm == pytest.approx(float(target.norm()), rel=1e-6)
            assert entry.relative_error == pytest.approx(error, rel=1e-3, abs=1e-9)
            size, moved = float(target.norm()), float(change.norm())
            lost = float(torch.linalg.svdvals(target)[new[Part.A].shape[0] :].norm())
            assert entry.change_norm == pytest.approx(moved, rel=1e-6)
            three = {"rel": 1e-3, "abs": 1e-9}
            assert entry.factor_mean_error == pytest.approx(averaged / size, **three)
            assert entry.lower_bound == pytest.approx(lost / size, **three)
            assert entry.relative_error_vs_change == pytest.approx(error * size / moved, **three)
            assert entry.factor_mean_error_vs_change == pytest.approx(averaged / moved, **three)
            assert entry.lower_bound_vs_change == pytest.approx(lost / moved, **three)


def versions_of(done: Finished, report: run_pb2.RoundReport) -> list[int]:
    later = [r.base_version for r in done.reports if r.round == report.round + 1]
    end = later[0] if later else len(done.versions) - 1
    return list(range(report.base_version + 1, end + 1))


# --- the laws of the wire ------------------------------------------------------------------


def check_wire(done: Finished) -> None:
    for payload in done.recording.up:
        if payload.header.round == 0 or "/refine/" in payload.header.task_id:
            continue
        plan = plan_for(done.plans, payload.header.round)
        allowed = {*plan.trained}
        if plan.selection is not Selection.ALL:
            allowed.add(Part.SELECTED)
        sent = {parse_key(k).part for k in payload.tensors} - {None}
        assert sent <= allowed
        if plan.selection is Selection.ALL:
            assert sent == allowed
    if any(plan.may_lower_rank for plan in done.plans):
        return
    for payload in done.recording.down:
        if payload.held_version is None:
            continue
        rounds = [r.round for r in done.reports if payload.held_version < max(versions_of(done, r))]
        plans = [plan_for(done.plans, r) for r in rounds if r <= payload.header.round]
        moved = {part for plan in plans for part in (*plan.published, *plan.refined)}
        assert {parse_key(k).part for k in payload.tensors} - {None} <= moved


def check_traffic(done: Finished) -> None:
    """What the method's row says is sent and fetched, against the numbers that were."""
    method = create_recipe(done.spec.method).method
    traffic = traffic_of(method)
    if done.spec.adapter.kind is not AdapterKind.LORA or done.spec.method.compression:
        # The rows are of LoRA, and of a method with its own rules.
        return
    ranks = [w.rank for w in done.workers.values() if w.role is Role.PARTY]
    sizes = {m.path: {"d": m.out_features, "k": m.in_features} for m in LAYOUT.modules}
    for payload in done.recording.up:
        if payload.header.round == 0 or "/refine/" in payload.header.task_id:
            continue
        formula = traffic.up[(payload.header.round - 1) % len(traffic.up)]
        rank = done.workers[payload.header.task_id.rsplit("/", 1)[-1]].rank
        for path, size in sizes.items():
            parts = parts_of(payload.tensors, path)
            if any(plan.may_lower_rank for plan in done.plans):
                rank = parts[Part.A].shape[0]
            chosen = int(parts[Part.SELECTED].sum()) if Part.SELECTED in parts else 0
            expected = evaluate(formula, **size, r=rank, m=chosen)
            assert sum(t.numel() for t in parts.values()) == expected, (path, formula)
    refines = any(w.role is Role.SERVER_DATA for w in done.workers.values()) and traffic.refined
    ends = {max(versions_of(done, report)): report.round for report in done.reports}
    fetched = [p for p in done.recording.down if p.header.adapter_version in ends]
    assert all(p.held_version is not None for p in fetched)
    for payload in fetched:
        t = ends[payload.header.adapter_version]
        formula = traffic.down[(t - 1) % len(traffic.down)]
        if refines:
            formula += f" + {traffic.refined[(t - 1) % len(traffic.refined)]}"
        known = {"r": payload.header.rank, "t": t, "U": len(ranks), "R": sum(ranks)}
        for path, size in sizes.items():
            crossed = sum(t.numel() for t in parts_of(payload.tensors, path).values())
            expected = evaluate(formula, **size, **known)
            rank = evaluate(method.about.base_rank, **known)
            if "min" in formula and rank > min(size.values()):
                # The stack was recompressed, and may have less rank than components.
                assert known["r"] * sum(size.values()) < crossed <= expected, (path, formula)
            else:
                assert crossed == expected, (path, formula)


def check_frozen_and_private(done: Finished) -> None:
    for report in done.reports:
        plan, before = plan_for(done.plans, report.round), done.versions[report.base_version]
        for version, moved in zip(
            versions_of(done, report), (plan.published, plan.refined), strict=False
        ):
            after = done.versions[version]
            frozen = [k for k in before if parse_key(k).part not in (None, *moved)]
            held = {parse_key(k).part for k in frozen}
            assert {Part.A, Part.B} - {*moved} <= held
            for key in frozen:
                # Version 0 may have a lower rank, and is widened once for all that follows.
                kept = tuple(slice(n) for n in before[key].shape)
                assert torch.equal(after[key][kept], before[key]), (report.round, key)
                assert version == 1 or after[key].shape == before[key].shape
            before = after
    crossed = [t for p in (*done.recording.up, *done.recording.down) for t in p.tensors.values()]
    for worker in done.workers.values():
        for private in worker.kept.values():
            assert not any(t.shape == private.shape and torch.equal(t, private) for t in crossed)


def check_final(done: Finished) -> None:
    """The exported adapter is PEFT's alone, and serves what the run came to."""
    dense = Dense(done)
    last = done.versions[-1]
    kinds = {parse_key(k).part for k in done.final} - {None}
    assert kinds <= {Part.A, Part.B, Part.MAGNITUDE}
    for module in LAYOUT.modules:
        served = dense.product(parts_of(done.final, module.path))
        parts = parts_of(last, module.path)
        expected = dense.product(parts) + dense.base(parts)
        torch.testing.assert_close(served, expected, rtol=1e-5, atol=1e-5)


async def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec, **options: Any
) -> Finished:
    """A federation of a run, and all that must hold of it."""
    async with asyncio.timeout(120):
        done = await federate(tmp_path, monkeypatch, spec, **options)
    check_wire(done)
    check_traffic(done)
    check_frozen_and_private(done)
    check_certificates(done)
    check_final(done)
    return done
