"""A federation is backed up while it runs, lost, and goes on from the backup."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import grpc
import pytest
import torch
from safetensors.torch import save
from support.federation import ScriptedWorker, Served, connected, random_adapter, reason_of, upload
from support.processes import ServerProcess, free_address
from support.runs import run_spec
from support.tiny_trainer import LAYOUT, TinyTrainer, adapter
from support.waiting import until
from support.worker_harness import worker
from torch import Tensor

from aggregator_service.store.backup import back_up
from client_worker.patience import Patience
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.tasks import Evaluation, EvaluationScope, Registration

NAMES = tuple(f"w-{i}" for i in range(12))
SPEC = run_spec(method="flora_na", num_rounds=1, num_workers=len(NAMES))


async def begun(served: Served) -> list[ScriptedWorker]:
    """All workers, in round 1, nobody's update there yet."""
    workers = [await served.worker(name) for name in NAMES]
    await workers[0].push(await workers[0].task(), random_adapter(4, seed=0), num_examples=0)
    return workers


async def push(worker: ScriptedWorker) -> pb.PushUpdateResponse:
    seed = 100 + NAMES.index(worker.name)
    return await worker.push(
        await worker.task(), random_adapter(4, seed=seed), idempotency_key=worker.name
    )


async def finish(served: Served, workers: list[ScriptedWorker]) -> tuple[bytes, int]:
    """Sends whatever the server lacks; the final adapter's digest and how many it lacked."""
    sent = 0
    for each in workers:
        each.stub = served.federation
        if (await each.upload_status(each.name)).state != pb.UPLOAD_STATE_COMMITTED:
            assert not (await push(each)).replayed
            sent += 1
    for each in workers:
        await each.evaluate(await each.task())
    header, _, _ = await workers[0].pull(1)
    return header.digest, sent


def backup_command(state: Path, out: Path) -> dict[str, object]:
    code = "from fedlora_cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "backup", str(state), str(out), "--json"],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    return json.loads(done.stdout)


async def test_a_run_restored_from_a_backup_ends_with_the_same_adapter_bit_for_bit(tmp_path: Path):
    with ServerProcess(tmp_path / "whole", SPEC) as server:
        async with connected(server.address) as served:
            undisturbed, _ = await finish(served, await begun(served))
    out = tmp_path / "backup"
    with ServerProcess(tmp_path / "lost", SPEC) as server:
        async with connected(server.address) as served:
            workers = await begun(served)
            for each in workers[:3]:
                await push(each)
            # One upload is on its way during the backup, and ends after it.
            tensors = random_adapter(4, seed=103)
            header = workers[3].header(
                await workers[3].task(), tensors, save(tensors), idempotency_key="w-3"
            )
            first, second, *rest = upload(header, save(tensors))
            slow = served.federation.PushUpdate(timeout=60)
            await slow.write(first)
            await slow.write(second)
            backup = asyncio.to_thread(backup_command, tmp_path / "lost" / "state", out)
            told, *_ = await asyncio.gather(backup, *(push(each) for each in workers[4:6]))
            for message in rest:
                await slow.write(message)
            assert not (await slow).replayed
            for each in workers[6:-1]:
                await push(each)
        server.kill()
    assert told["runs"] == ["test"]
    state = tmp_path / "restored" / "state"
    shutil.copytree(out, state)
    with ServerProcess(tmp_path / "restored", SPEC) as server:
        async with connected(server.address) as served:
            for each in workers:
                each.stub = served.federation
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await each.task()
                assert reason_of(caught.value) == "UNKNOWN_SESSION"
                await each.register()
                await each.confirm()
            restored, sent = await finish(served, workers)
        assert server.terminate() == 0
    assert restored == undisturbed
    # The two that were sent meanwhile may be in the backup or not.
    assert len(NAMES) - 5 <= sent <= len(NAMES) - 3


def test_a_worker_that_had_not_confirmed_yet_confirms_again(tmp_path: Path):
    """The backup falls between a worker's registration and its word that it is ready."""
    address, out = free_address(), tmp_path / "backup"
    registered, backed_up = threading.Event(), threading.Event()

    def load_slowly(registration: Registration) -> TinyTrainer:
        registered.set()
        assert backed_up.wait(60)
        return TinyTrainer(registration)

    def patient() -> Patience:
        return Patience(limit_seconds=0, sleep=lambda _: threading.Event().wait(0.05) and None)

    with ExitStack() as stack:
        # Two are needed and there is one: after its confirmation it waits for a task.
        first = stack.enter_context(
            worker(address, tmp_path / "w-0", name="w-0", create=load_slowly, patience=patient())
        )
        second = stack.enter_context(
            worker(address, tmp_path / "w-1", name="w-1", patience=patient())
        )
        spec = run_spec(num_rounds=1)
        with ServerProcess(tmp_path / "lost", spec, address=address) as server:
            first_ended = first.run_in_thread()
            assert registered.wait(60)
            back_up(tmp_path / "lost" / "state", out)
            backed_up.set()
            wait_for_event(server, "worker_ready")
            server.kill()
        shutil.copytree(out, tmp_path / "restored" / "state")
        stack.enter_context(ServerProcess(tmp_path / "restored", spec, address=address))
        assert second.run_in_thread()() == ExitCode.OK
        assert first_ended() == ExitCode.OK


class Scoring(TinyTrainer):
    """Puts aside the published adapters that it scores."""

    def __init__(self, registration: Registration, scored: Queue[dict[str, Tensor]]) -> None:
        super().__init__(registration)
        self.scored = scored

    def evaluate(self, scope: EvaluationScope, **shard: int) -> tuple[Evaluation, ...]:
        if scope is EvaluationScope.GLOBAL:
            self.scored.put(self.adapter())
        return super().evaluate(scope, **shard)


async def test_a_worker_takes_no_version_of_before_for_one_that_is_made_again(tmp_path: Path):
    """The same number, and another adapter: another worker's update is not the same twice."""
    address, spec, scored = free_address(), run_spec(num_rounds=1), Queue[dict[str, Tensor]]()

    async def end_round(served: Served, other: ScriptedWorker, seed: int) -> None:
        await other.push(await other.task(), adapter(seed=seed))
        published = await other.pull_tensors((task := await other.task()).adapter_version)
        held = await asyncio.to_thread(scored.get, timeout=60)
        assert all(torch.equal(held[key], published[key]) for key in published)
        if seed == 2:
            await other.evaluate(task)

    with ExitStack() as stack:
        first = stack.enter_context(
            worker(
                address,
                tmp_path / "w-0",
                name="w-0",
                create=lambda registration: Scoring(registration, scored),
                patience=Patience(limit_seconds=0, sleep=lambda _: time.sleep(0.05)),
            )
        )
        with ServerProcess(tmp_path / "lost", spec, address=address) as server:
            ended = first.run_in_thread()
            await asyncio.to_thread(wait_for_event, server, "worker_ready")
            async with connected(address) as served:
                other = await served.worker("w-1", layout=LAYOUT)
                await other.task()
                # The first adapter and this round's update.
                await until(lambda: server.log.count("update_committed") == 2)
                back_up(tmp_path / "lost" / "state", tmp_path / "restored" / "state")
                await end_round(served, other, seed=1)
                await asyncio.to_thread(wait_for_event, server, "evaluation_reported")
            server.kill()
        stack.enter_context(ServerProcess(tmp_path / "restored", spec, address=address))
        async with connected(address) as served:
            await end_round(served, await served.worker("w-1", layout=LAYOUT), seed=2)
        assert await asyncio.to_thread(ended) == ExitCode.OK


def wait_for_event(server: ServerProcess, name: str) -> None:
    pause = threading.Event()
    while name not in server.log:
        assert server.process is not None
        assert server.process.poll() is None
        pause.wait(0.02)
