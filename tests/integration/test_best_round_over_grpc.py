"""A run that is over once it gets no better: over gRPC, with a restart, to the exported adapter."""

from __future__ import annotations

import asyncio
from pathlib import Path

from safetensors.torch import load_file
from support.federation import ScriptedWorker, Served, random_adapter, serving
from support.runs import run_spec
from torch import equal
from typer.testing import CliRunner

from fedlora.proto.v1 import admin_pb2, run_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.rounds import FinalVersion
from fedlora_cli.app import app

NAMES = ("w-0", "w-1")


async def live(workers: list[ScriptedWorker], *scores: float) -> None:
    """A round for each score, in which every worker reports it."""
    for score in scores:
        for seed, worker in enumerate(workers):
            task = await worker.task()
            assert task.kind == pb.TASK_KIND_TRAIN
            await worker.push(task, random_adapter(4, seed=10 * task.round + seed))
        for worker in workers:
            await worker.evaluate(await worker.task(), accuracy=score)


async def described(served: Served) -> admin_pb2.Run:
    return (await served.admin.GetRun(admin_pb2.GetRunRequest(run="test"), timeout=30)).run


async def test_a_run_ends_when_it_gets_no_better_and_leaves_its_best_version(tmp_path: Path):
    spec = run_spec(
        num_rounds=9,
        best_by="test_accuracy",
        early_stopping_rounds=2,
        final_version=FinalVersion.BEST,
    )
    runs = tmp_path / "runs"
    async with serving(tmp_path, spec, export_dir=runs) as served:
        workers = [await served.worker(name) for name in NAMES]
        first = await workers[0].task()
        assert first.kind == pb.TASK_KIND_INITIALIZE
        await workers[0].push(first, random_adapter(4, seed=1), num_examples=0)
        await live(workers, 0.5, 0.75, 0.625)
        assert (await described(served)).best.round == 2
    async with serving(tmp_path, spec, export_dir=runs) as served:
        workers = [await served.worker(name) for name in NAMES]
        await live(workers, 0.75)
        over = await workers[0].task()
        assert over.kind == pb.TASK_KIND_STOP
        run = await described(served)
        assert run.phase == run_pb2.RUN_PHASE_COMPLETED
        assert (run.best.round, run.best.adapter_version, run.best.value) == (2, 2, 0.75)
        assert over.reason == run.reason
        assert "not become better in 2 rounds, since round 2" in run.reason
        await served.aggregator.wait_until_settled()
        out = tmp_path / "best"
        command = ["export", "test", "--best", "--out", str(out), "--server", served.address]
        done = await asyncio.to_thread(CliRunner().invoke, app, command)
        assert (done.exit_code, done.exception) == (0, None)
    found = load_file(out / "adapter_model.safetensors")
    for folder, same in (("rounds/0002", True), ("rounds/0004", False), ("final", True)):
        other = load_file(runs / "test" / folder / "adapter_model.safetensors")
        assert all(equal(t, other[name]) for name, t in found.items()) is same
