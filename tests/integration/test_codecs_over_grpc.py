"""Real workers and the real server in runs with a codec: every byte that crosses is looked at."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.codecs import read_update
from support.federation import ScriptedWorker, Served, random_adapter, serving
from support.planned_worker import Recording
from support.reference import tail_norm
from support.runs import LAYOUT as RUN_LAYOUT
from support.runs import run_spec
from support.tiny_trainer import LAYOUT, TinyTrainer
from support.worker_harness import worker
from torch import Tensor

from aggregator_service.aggregation.registry import create_recipe
from aggregator_service.transport import server as transport_server
from fedlora.adapters.names import Factor, lora_key
from fedlora.codecs.rows import as_rows, from_rows
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import coded_manifest, coded_update, create_codec
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.report import RoundReport
from fedlora.runs.rounds import RoundEngine
from fedlora.runs.spec import RunSpec
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

ROUNDS = 3
MODULES = tuple(m.path for m in RUN_LAYOUT.modules)


@dataclass
class Finished:
    """A run of two workers that has come to its end."""

    spec: RunSpec
    versions: list[dict[str, Tensor]]
    reports: list[RoundReport]
    sent: list[list[dict[str, Tensor]]]
    """by round: the payloads of its updates, by worker"""
    trained: dict[str, list[dict[str, Tensor]]]
    """by worker: what each round has come to, in full"""

    def read(self, round: int, who: int) -> dict[str, Tensor]:
        """The adapter that an update says, by the codec's own definition."""
        assert self.spec.codec is not None
        payload = self.sent[round - 1][who]
        return read_update(create_codec(self.spec.codec), payload, self.versions[round - 1])


class Keeping(TinyTrainer):
    """Keeps what its training has come to, and moves as little as training does."""

    rounds: list[dict[str, Tensor]]

    def evaluate(self, scope, **shard):
        if scope.value == "local":
            self.rounds.append(self.adapter())
        return super().evaluate(scope, **shard)

    def _share(self, name: str) -> float:
        return 0.05


async def federate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec) -> Finished:
    recording = Recording()
    monkeypatch.setattr(transport_server, "FederationServicer", recording.servicer())
    trained: dict[str, list[dict[str, Tensor]]] = {"w-0": [], "w-1": []}

    def creating(name: str):
        def create(registration):
            trainer = Keeping(registration)
            trainer.rounds = trained[name]
            return trainer

        return create

    async with asyncio.timeout(120), serving(tmp_path, spec) as served:
        coordinator = served.aggregator.coordinator
        with ExitStack() as stack:
            workers = [
                stack.enter_context(
                    worker(served.address, tmp_path / name, name=name, create=creating(name))
                )
                for name in trained
            ]
            codes = await asyncio.gather(*(asyncio.to_thread(w.runner.run) for w in workers))
        assert codes == [ExitCode.OK] * 2
        await served.aggregator.wait_until_settled()
        actor = coordinator.run("test")
        records = [await coordinator.adapter(actor, v) for v in range(ROUNDS + 1)]
        versions = [load_file(coordinator.blobs.path(r.digest)) for r in records]
        reports = [await coordinator.report(actor, r) for r in range(1, ROUNDS + 1)]
    by_task = {p.header.task_id: p.tensors for p in recording.up}
    sent = [
        [by_task[next(t for t in by_task if t.endswith(f"/{r}/train/{name}"))] for name in trained]
        for r in range(1, ROUNDS + 1)
    ]
    return Finished(spec, versions, reports, sent, trained)


def spec_of(codec: CodecName, method: str = "fedit") -> RunSpec:
    return replace(
        run_spec(method=method, num_rounds=ROUNDS),
        codec=CodecSpec(name=codec, kept_share=0.2),
    )


@pytest.mark.parametrize("method", ["fedit", "optimal"])
@pytest.mark.parametrize("codec", list(CodecName))
async def test_a_federation_runs_in_every_codec_and_loses_only_what_that_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: CodecName, method: str
):
    done = await federate(tmp_path, monkeypatch, spec_of(codec, method))
    plain = LAYOUT.manifest(4, DataType.F32)
    assert done.spec.codec is not None
    wanted = coded_manifest(plain, create_codec(done.spec.codec))
    for round in range(1, ROUNDS + 1):
        assert all(TensorManifest.of(payload) == wanted for payload in done.sent[round - 1])
        # The report counts the bytes that have crossed, not those that they stand for.
        report = done.reports[round - 1]
        assert all(u.total_bytes < plain.data_bytes for u in report.updates)
        assert report.certificate is not None
        if method == "fedit":
            # Both workers count alike, so that the server's mean is that of what it has read.
            for name, tensor in done.versions[round].items():
                mean = sum(done.read(round, who)[name].double() for who in (0, 1)) / 2
                assert torch.allclose(tensor.double(), mean, rtol=0, atol=2.0**-22)
        else:
            # The best rank-4 approximation loses to rank 8 of what was read, not of what was meant.
            figures = report.certificate.overall
            assert figures.relative_error == pytest.approx(figures.lower_bound, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("codec", list(CodecName))
@pytest.mark.parametrize("method", ["fedit", "optimal"])
async def test_feedback_leaves_the_server_owing_one_residual_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: CodecName, method: str
):
    done = await federate(tmp_path, monkeypatch, spec_of(codec, method))
    (plan,) = create_recipe(done.spec.method).plans()
    for who, rounds in enumerate(done.trained.values()):
        for name in done.versions[0]:
            left = [
                trained[name].double() - done.read(r, who)[name].double()
                for r, trained in enumerate(rounds, start=1)
            ]
            change = rounds[-1][name].double() - done.versions[-2][name].double()
            owed = torch.stack(left).sum(dim=0)
            # With feedback the last update has made up for those before: what is left of all of
            # them is what its own codec left of the last change and of what was owed by then.
            before = torch.stack(left[:-1]).sum(dim=0)
            assert done.spec.codec is not None
            bound = _bound(done.spec.codec, name, change + (before if plan.keeps_basis else 0))
            if plan.keeps_basis:
                assert bool((owed.abs() <= bound + 1e-5).all())
            else:
                assert bool((left[-1].abs() <= bound + 1e-5).all())


def _bound(spec: CodecSpec, name: str, change: Tensor) -> Tensor:
    info = TensorInfo(name=name, shape=tuple(change.shape), dtype=DataType.F32)
    return from_rows(info, create_codec(spec).error_bound(as_rows(info, change.float()))).double()


async def test_a_worker_that_lacks_the_codec_is_refused_with_the_reason(tmp_path: Path):
    spec = spec_of(CodecName.NF4)
    async with serving(tmp_path, spec) as served:
        with worker(
            served.address, tmp_path / "w", name="w", codecs=(CodecName.BF16, CodecName.INT8)
        ) as w:
            assert await asyncio.to_thread(w.runner.run) is ExitCode.REFUSED
        assert served.aggregator.coordinator.run("test").state.workers == {}


# --- workers moved by hand -------------------------------------------------------------------


async def begin(worker: ScriptedWorker) -> None:
    """Sends version 0."""
    task = await worker.task()
    assert task.kind == pb.TASK_KIND_INITIALIZE
    await worker.push(task, random_adapter(worker.rank, seed=0), num_examples=0)


async def push(
    served: Served, worker: ScriptedWorker, task: pb.Task, *, seed: int
) -> dict[str, Tensor]:
    """Sends a coded change of what the worker is given; returns the adapter that it says."""
    spec = served.aggregator.coordinator.run("test").state.spec
    assert spec.codec is not None
    codec, given = create_codec(spec.codec), await worker.pull_tensors(task.adapter_version)
    noise = random_adapter(worker.rank, seed=seed, scale=0.3)
    trained = {name: value + noise[name] for name, value in given.items()}
    coded = coded_update(codec, trained, given, {})
    await worker.push(task, coded.tensors)
    return read_update(codec, coded.tensors, given)


@pytest.mark.parametrize("codec", [CodecName.INT8, CodecName.TOP_K])
async def test_a_late_update_is_the_change_of_the_version_that_its_worker_was_given(
    tmp_path: Path, codec: CodecName
):
    spec = replace(
        run_spec(
            num_workers=3,
            engine=RoundEngine.BUFFERED,
            buffer_size=2,
            quorum=1,
            num_rounds=2,
            evaluate=False,
        ),
        codec=CodecSpec(name=codec),
    )
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        workers = [await served.worker(name) for name in ("a", "b", "slow")]
        await begin(workers[0])
        tasks = [await w.task() for w in workers]
        for i in (0, 1):
            await push(served, workers[i], tasks[i], seed=1 + i)
        again = await workers[0].task()
        assert (again.adapter_version, tasks[2].adapter_version) == (1, 0)
        v0, v1 = [await workers[0].pull_tensors(v) for v in (0, 1)]
        late = await push(served, workers[2], tasks[2], seed=3)
        fresh = await push(served, workers[0], again, seed=4)
        await served.aggregator.wait_until_settled()
        v2 = await workers[1].pull_tensors(2)
    share = 0.5 * 2**-0.5  # one round late
    for name, tensor in v2.items():
        expected = v1[name] + 0.5 * (fresh[name] - v1[name]) + share * (late[name] - v0[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", list(CodecName))
@pytest.mark.parametrize("lower_first", [False, True])
async def test_a_worker_of_a_lower_rank_says_a_change_of_its_own_copy(
    tmp_path: Path, codec: CodecName, lower_first: bool
):
    spec = replace(
        run_spec(method="optimal", num_rounds=1, evaluate=False), codec=CodecSpec(name=codec)
    )
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        workers = [
            await served.worker(name, max_rank=rank)
            for name, rank in (("a", 2 if lower_first else 0), ("b", 0 if lower_first else 2))
        ]
        await begin(workers[0])
        read = [await push(served, w, await w.task(), seed=i) for i, w in enumerate(workers)]
        await served.aggregator.wait_until_settled()
        whole = max(workers, key=lambda w: w.rank)
        published = await whole.pull_tensors(1)
    for module in MODULES:
        mean = sum(product(adapter, module) for adapter in read) / 2
        error = float((product(published, module) - mean).norm())
        assert error == pytest.approx(tail_norm(mean, 4), rel=1e-4, abs=1e-4)


def product(tensors: dict[str, Tensor], module: str) -> Tensor:
    a, b = (tensors[lora_key(module, f)].double() for f in (Factor.LORA_A, Factor.LORA_B))
    return 8.0 / len(a) * b @ a  # lora_alpha / r
