"""One state directory, two servers: the older one freezes, is replaced, and wakes."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import grpc
import pytest
from safetensors.torch import save
from support.federation import (
    ScriptedWorker,
    Served,
    connected,
    random_adapter,
    reason_of,
    serving,
    upload,
)
from support.processes import ServerProcess
from support.runs import run_spec

from fedlora.errors import FedLoraError
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import federation_pb2 as pb

SPEC = run_spec(num_rounds=1)


async def in_training(served: Served) -> list[ScriptedWorker]:
    """Two workers in round 1; the first one's update, "k-0", is acknowledged."""
    workers = [await served.worker(f"w-{i}") for i in range(2)]
    first = workers[0]
    await first.push(await first.task(), random_adapter(4, seed=0), num_examples=0)
    await first.push(await first.task(), random_adapter(4, seed=1), idempotency_key="k-0")
    return workers


async def states(workers: list[ScriptedWorker], served: Served, *keys: str) -> list[int]:
    """What a server that the workers have moved to knows of their uploads."""
    found = []
    for worker, key in zip(workers, keys, strict=True):
        worker.stub = served.federation
        found.append((await worker.upload_status(key)).state)
    return found


async def test_a_frozen_server_that_wakes_acknowledges_nothing_and_ends_with_5(tmp_path: Path):
    late = random_adapter(4, seed=2)
    old = ServerProcess(tmp_path / "old", SPEC)
    new = ServerProcess(
        tmp_path / "new", SPEC, state_dir=tmp_path / "old" / "state", take_over=True
    )
    with ExitStack() as processes:
        processes.enter_context(old)
        async with connected(old.address) as before:
            workers = await in_training(before)
            header = workers[1].header(
                await workers[1].task(), late, save(late), idempotency_key="k-1"
            )
            messages = upload(header, save(late))
            torn = before.federation.PushUpdate(timeout=60)
            for message in messages[:3]:
                await torn.write(message)
            old.pause()
            processes.enter_context(new)
            # Into the buffers of a process that does not run.
            for message in messages[3:]:
                await torn.write(message)
            await torn.done_writing()
            whole = before.federation.PushUpdate(iter(messages), timeout=60)
            old.resume()
            for call in (torn, whole):
                with pytest.raises(grpc.RpcError):
                    await call
            assert old.process is not None
            assert old.process.wait(30) == ExitCode.FENCED, old.log
        async with connected(new.address) as after:
            assert await states(workers, after, "k-0", "k-1") == [
                pb.UPLOAD_STATE_COMMITTED,
                pb.UPLOAD_STATE_UNKNOWN,
            ]
            await workers[1].push(await workers[1].task(), random_adapter(4, seed=3))
            for worker in workers:
                await worker.evaluate(await worker.task())
            assert (await workers[0].task()).kind == pb.TASK_KIND_STOP
        assert new.terminate() == ExitCode.OK


async def test_an_upload_to_a_replaced_server_leaves_no_row(tmp_path: Path):
    """Without the watch on the lock file, so that only the store's epoch can refuse it."""
    async with serving(tmp_path, SPEC) as old:
        workers = await in_training(old)
        task = await workers[1].task()
        async with serving(tmp_path, SPEC, take_over=True) as new:
            with pytest.raises(grpc.RpcError) as caught:
                await workers[1].push(task, random_adapter(4, seed=2), idempotency_key="k-1")
            assert reason_of(caught.value) == "STATE_LOCKED"
            await old.aggregator.wait_until_fenced()
            assert await states(workers, new, "k-0", "k-1") == [
                pb.UPLOAD_STATE_COMMITTED,
                pb.UPLOAD_STATE_UNKNOWN,
            ]
            answer = await workers[1].push(task, random_adapter(4, seed=3))
            assert not answer.replayed


async def test_a_replaced_server_that_is_asked_nothing_learns_of_it_and_leaves_no_mess(
    tmp_path: Path,
):
    port_file = tmp_path / "address"
    async with AsyncExitStack() as stack:
        async with serving(tmp_path, None, port_file=port_file) as old:
            new = await stack.enter_async_context(
                serving(tmp_path, None, take_over=True, port_file=port_file)
            )
            await old.aggregator.wait_until_fenced()
        assert port_file.read_text() == new.address
    assert not port_file.exists()


async def test_without_take_over_the_second_server_leaves_the_first_alone(tmp_path: Path):
    async with serving(tmp_path, SPEC) as first:
        workers = await in_training(first)
        with pytest.raises(FedLoraError, match="another aggregator"):
            async with serving(tmp_path, SPEC):
                raise AssertionError("two servers")
        await workers[1].push(await workers[1].task(), random_adapter(4, seed=2))
