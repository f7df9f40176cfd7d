"""SIGTERM at any moment: work in flight gets its grace, nobody waits, nothing is lost."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load, save
from support.beats import Beats
from support.federation import (
    CHUNK_BYTES,
    ScriptedWorker,
    Served,
    config,
    connected,
    random_adapter,
    reason_of,
    serving,
    upload,
)
from support.kill_history import judge, live_through
from support.processes import ServerProcess
from support.runs import run_spec
from support.seeds import seeds_for
from support.waiting import until

from aggregator_service.app import Aggregator
from fedlora.proto.v1 import admin_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.tasks import UpdateHeader

NAMES = tuple(f"w-{i:02d}" for i in range(12))
GRACE_SECONDS = 10.0
"""server.shutdown_grace_seconds as shipped"""


async def terminated(folder: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    spec = run_spec(method="flora_na", num_rounds=2 * count, num_workers=12, evaluate=False)
    # Two lives are around each end, so that there are 20 acknowledgements around it.
    words = [f"term after {draw.randrange(10, 24)}" for _ in range(count)]
    whole = await live_through(folder / "whole", spec, NAMES)
    history = await live_through(folder / "terminated", spec, NAMES, words)
    assert len(history.drains) == count, words
    assert max(history.drains) <= GRACE_SECONDS + 1, history.drains
    judge(history, spec, NAMES)
    assert history.adapters == whole.adapters, "bit for bit"


async def test_a_server_without_a_transport_works_nothing_ahead_once_it_is_closed(tmp_path: Path):
    spec = run_spec(method="flora_na")
    async with serving(tmp_path, spec) as served:
        first = await served.worker("w-0")
        await served.worker("w-1")
        await first.push(await first.task(), random_adapter(4, seed=0), num_examples=0)
        assert (await first.task()).kind == pb.TASK_KIND_TRAIN
    async with Aggregator(config(tmp_path), listens=False) as aggregator:
        (actor,) = aggregator.coordinator.runs()
    # As an upload asks for a moment after its answer.
    aggregator.coordinator.prepare(actor)


@pytest.mark.parametrize(
    "seed", seeds_for("test_a_server_that_is_terminated_in_mid_round_loses_nothing", 1)
)
async def test_a_server_that_is_terminated_in_mid_round_loses_nothing(tmp_path: Path, seed: int):
    await terminated(tmp_path, 3, seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seed",
    seeds_for("test_a_server_that_is_terminated_twenty_times_loses_nothing", 1, fresh=True),
)
async def test_a_server_that_is_terminated_twenty_times_loses_nothing(tmp_path: Path, seed: int):
    await terminated(tmp_path, 20, seed)


@dataclass(frozen=True)
class Begun:
    """An upload whose first messages are on the server's disk."""

    header: UpdateHeader
    push: grpc.aio.StreamUnaryCall
    data: bytes
    left: list[pb.PushUpdateRequest]

    @staticmethod
    async def by(served: Served, worker: ScriptedWorker, uploads: Path) -> Begun:
        task, tensors = await worker.task(), random_adapter(4, seed=1)
        data = save(tensors)
        header = worker.header(task, tensors, data)
        messages, before = upload(header, data), len(list(uploads.iterdir()))
        push = served.federation.PushUpdate(timeout=60)
        for message in messages[:3]:
            await push.write(message)
        # A write returns before the server has taken the call up; it may refuse until then.
        await until(lambda: sum(p.stat().st_size > 0 for p in uploads.iterdir()) > before)
        return Begun(header, push, data, messages[3:])


async def test_a_process_says_not_serving_first_and_ends_within_its_grace(tmp_path: Path):
    """Of two uploads that SIGTERM finds under way, one goes on to its end and one stands still."""
    grace = 2.0
    with ServerProcess(tmp_path, run_spec(), shutdown_grace_seconds=grace) as server:
        assert server.process is not None
        async with connected(server.address) as served:
            workers = [await served.worker(f"w-{i}") for i in range(2)]
            first = await workers[0].task()
            await workers[0].push(first, random_adapter(4, seed=0), num_examples=0)
            health = health_pb2_grpc.HealthStub(served.channel)
            statuses = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
            watch = aiter(statuses)
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
            uploads = tmp_path / "state" / "uploads"
            goes_on, stands_still = [await Begun.by(served, w, uploads) for w in workers]
            given_up_at: list[float] = []
            stands_still.push.add_done_callback(lambda _: given_up_at.append(time.monotonic()))
            server.process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert server.process.poll() is None
            assert not goes_on.push.done()
            for message in goes_on.left:
                await goes_on.push.write(message)
            with suppress(grpc.aio.AioRpcError):  # grpc.aio loses an answer now and then
                assert (await goes_on.push).total_bytes == len(goes_on.data)
            assert await asyncio.to_thread(server.process.wait, 30) == 0
            ended_at = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError):
                await stands_still.push
            assert grace <= given_up_at[0] - told_at <= grace + 1
            # Python takes a while to end, on a busy machine seconds.
            assert grace <= ended_at - told_at <= grace + 5
        server.start()
        async with connected(server.address) as served:
            states = []
            for worker, begun in zip(workers, (goes_on, stands_still), strict=True):
                worker.stub = served.federation
                states.append((await worker.upload_status(begun.header.idempotency_key)).state)
            assert states == [pb.UPLOAD_STATE_COMMITTED, pb.UPLOAD_STATE_PARTIAL]
            header = replace(stands_still.header, start_offset=2 * CHUNK_BYTES)
            rest = upload(header, stands_still.data, start_offset=2 * CHUNK_BYTES)
            answer = await workers[1].push_messages(rest)
            assert (answer.replayed, answer.total_bytes) == (False, len(stands_still.data))


async def test_an_upload_in_flight_ends_well_while_those_who_wait_are_sent_away(tmp_path: Path):
    uploads = tmp_path / "state" / "uploads"
    async with serving(tmp_path, run_spec(), shutdown_grace_seconds=20.0) as served:
        worker, other = [await served.worker(f"w-{i}") for i in range(2)]
        health = health_pb2_grpc.HealthStub(served.channel)
        statuses = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
        watch = aiter(statuses)
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        task = await worker.task()
        polls = asyncio.ensure_future(other.task(max_wait_seconds=30))
        follows = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        await anext(aiter(follows))
        data = save(random_adapter(4, seed=0))
        header = worker.header(task, load(data), data, num_examples=0)
        messages = upload(header, data)
        push = served.federation.PushUpdate(timeout=60)
        for message in messages[:3]:
            await push.write(message)
        # A write returns before the server has taken the call up; it may refuse until then.
        await until(lambda: any(p.stat().st_size for p in uploads.iterdir()))
        stopping = asyncio.ensure_future(served.aggregator.__aexit__())
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        statuses.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await polls
        assert reason_of(caught.value) == "UNAVAILABLE"
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in follows:
                pass
        assert not stopping.done(), "an upload is in flight"
        for message in messages[3:]:
            await push.write(message)
        with suppress(grpc.aio.AioRpcError):  # grpc.aio loses an answer now and then
            assert (await push).total_bytes == len(data)
        await stopping
    async with serving(tmp_path, None) as served:
        again = ScriptedWorker(served.federation, worker.name)
        await again.register()
        status = await again.upload_status(header.idempotency_key)
        assert status.state == pb.UPLOAD_STATE_COMMITTED


async def test_nobody_waits_for_heartbeats(tmp_path: Path):
    async with serving(tmp_path, run_spec(), shutdown_grace_seconds=600.0) as served:
        streams = [Beats(await served.worker(f"w-{i}")) for i in range(3)]
        for each in streams:
            await each.beat()
        async with asyncio.timeout(60):
            await served.aggregator.__aexit__()
        assert [await each.ended() for each in streams] == ["UNAVAILABLE"] * 3
