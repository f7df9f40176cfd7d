"""Heartbeats over a stream, on a real server: what one proves, and all that ends it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from support.beats import Beats
from support.federation import ScriptedWorker, reason_of, serving
from support.identities import Federation, channel_of
from support.observed_federation import scrape
from support.runs import run_spec
from support.waiting import until

from aggregator_service.config import AggregatorConfig
from fedlora.identity.bearer import add_bearer_token
from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc, federation_pb2_grpc, identity_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.channel import client_options
from fedlora.runs.report import EventType, WorkerState

QUICK = {"worker_timeout_seconds": 0.4, "heartbeat_interval_seconds": 0.1}


async def called(worker: ScriptedWorker) -> str:
    """Why Heartbeat is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.stub.Heartbeat(pb.HeartbeatRequest(session_token=worker.token), timeout=30)
    return reason_of(caught.value)


async def test_each_beat_says_whether_the_work_still_counts(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_workers=1)) as served:
        worker = await served.worker("w-0")
        task, beats = await worker.task(), Beats(worker)
        assert await beats.beat() == pb.DIRECTIVE_CONTINUE
        assert await beats.beat(task.task_id) == pb.DIRECTIVE_CONTINUE
        await served.admin.StopRun(admin_pb2.StopRunRequest(run="test", reason="enough"))
        assert await beats.beat(task.task_id) == pb.DIRECTIVE_ABANDON_TASK
        await beats.stream.done_writing()
        assert await beats.stream.read() is grpc.aio.EOF
        assert await beats.stream.code() is grpc.StatusCode.OK


async def test_a_session_that_is_fenced_or_unknown_ends_the_stream_as_it_ends_a_call(
    tmp_path: Path,
):
    async with serving(tmp_path, run_spec()) as served:
        old = await served.worker("w-0")
        beats = Beats(old)
        await beats.beat()
        newer = ScriptedWorker(served.federation, "w-0", instance_id="instance-2")
        await newer.register()
        assert await beats.refused() == await called(old) == "SESSION_FENCED"
        newer.token = "no token"
        assert await Beats(newer).refused() == await called(newer) == "UNKNOWN_SESSION"


async def test_a_beat_that_asks_for_no_answer_gets_none_and_is_a_sign_of_life(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_workers=2), **QUICK) as served:
        actor = served.aggregator.coordinator.run("test")
        worker, silent = await served.worker("w-0"), await served.worker("w-1")
        task, beats = await worker.task(), Beats(worker)
        async with asyncio.timeout(30):
            while actor.state.workers[silent.name].state is not WorkerState.LOST:
                await beats.beat_unanswered()
                await actor.wait_for_change(0.05)
        assert actor.state.workers["w-0"].state is not WorkerState.LOST
        await served.admin.StopRun(admin_pb2.StopRunRequest(run="test", reason="enough"))
        # Had the server answered any of them, that would be the first thing to be read.
        assert await beats.beat(task.task_id) == pb.DIRECTIVE_ABANDON_TASK
        await beats.stream.done_writing()
        assert await beats.stream.read() is grpc.aio.EOF


async def test_a_session_that_is_fenced_ends_the_stream_at_a_beat_that_asks_for_no_answer(
    tmp_path: Path,
):
    async with serving(tmp_path, run_spec()) as served:
        old = await served.worker("w-0")
        beats = Beats(old)
        await beats.beat()
        newer = ScriptedWorker(served.federation, "w-0", instance_id="instance-2")
        await newer.register()
        await beats.beat_unanswered()
        assert await beats.ended() == "SESSION_FENCED"


async def test_a_session_is_checked_with_each_beat_and_not_with_the_first_alone(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        worker = await served.worker("w-0")
        beats = Beats(worker)
        await beats.beat()
        beats.token = f"1/{'x' * 32}/{worker.run_id}/w-0"
        assert await beats.refused() == "UNKNOWN_SESSION"


async def test_a_revoked_worker_and_one_of_another_name_lose_their_streams(tmp_path: Path):
    federation = Federation(tmp_path / "federation")
    settings = {"identity_dir": federation.server()}
    folders = {n: federation.member(AccessRole.WORKER, n) for n in ("w-1", "w-2")}
    operator = federation.member(AccessRole.OPERATOR, "operator")
    async with (
        serving(tmp_path, run_spec(), **settings) as served,
        channel_of(operator, served.address) as operating,
        channel_of(folders["w-1"], served.address) as one,
        channel_of(folders["w-2"], served.address) as two,
    ):
        first, second = (
            ScriptedWorker(federation_pb2_grpc.FederationServiceStub(c), name)
            for c, name in ((one, "w-1"), (two, "w-2"))
        )
        await first.register()
        await second.register()
        beats, other = Beats(first), Beats(second)
        await beats.beat()
        await other.beat()
        other.token = first.token
        assert await other.refused() == "PERMISSION_DENIED"
        revoke = admin_pb2.RevokeRequest(role=identity_pb2.ACCESS_ROLE_WORKER, name="w-1")
        await admin_pb2_grpc.AdminServiceStub(operating).Revoke(revoke, timeout=10)
        assert await beats.refused() == await called(first) == "UNAUTHENTICATED"


async def test_what_expires_meanwhile_ends_the_stream(tmp_path: Path):
    tokens, ends = tmp_path / "tokens", int(time.time()) + 3
    token = add_bearer_token(tokens, AccessRole.WORKER, "w-1", issued_at=0, expires_at=ends)
    metadata = (("authorization", f"Bearer {token}"),)

    class Bearing:
        """Stubs that bring the token."""

        def __init__(self, stub: federation_pb2_grpc.FederationServiceStub) -> None:
            self.Register = lambda r, timeout: stub.Register(r, timeout=timeout, metadata=metadata)
            self.KeepAlive = lambda: stub.KeepAlive(metadata=metadata)

    async with (
        serving(tmp_path, run_spec(), tokens_file=tokens) as served,
        grpc.aio.insecure_channel(served.address, options=client_options()) as channel,
    ):
        worker = ScriptedWorker(Bearing(federation_pb2_grpc.FederationServiceStub(channel)), "w-1")
        await worker.register()
        beats = Beats(worker)
        await beats.beat()
        await until(lambda: time.time() >= ends)
        assert await beats.refused() == "UNAUTHENTICATED"


async def test_an_open_stream_that_is_silent_is_no_sign_of_life_and_ends(tmp_path: Path):
    async with serving(tmp_path, run_spec(), **QUICK) as served:
        actor = served.aggregator.coordinator.run("test")
        beats = Beats(await served.worker("w-0"))
        await beats.beat()
        assert await beats.ended() == "DEADLINE_EXCEEDED"
        await until(lambda: actor.state.workers["w-0"].state is WorkerState.LOST)


async def test_a_worker_that_beats_is_there_for_as_long_as_it_does(tmp_path: Path):
    async with serving(tmp_path, run_spec(), **QUICK) as served:
        coordinator = served.aggregator.coordinator
        actor = coordinator.run("test")
        beating, silent = Beats(await served.worker("w-0")), await served.worker("w-1")
        async with asyncio.timeout(30):
            while actor.state.workers[silent.name].state is not WorkerState.LOST:
                await beating.beat()
                await actor.wait_for_change(0.05)
        assert actor.state.workers["w-0"].state is WorkerState.READY


async def test_a_stream_that_ends_is_no_farewell(tmp_path: Path):
    async with serving(tmp_path, run_spec(), worker_timeout_seconds=600.0) as served:
        coordinator = served.aggregator.coordinator
        worker = await served.worker("w-0")
        for end in ("cancelled", "closed"):
            beats = Beats(worker)
            await beats.beat()
            if end == "cancelled":
                beats.stream.cancel()
            else:
                await beats.stream.done_writing()
                assert await beats.stream.code() is grpc.StatusCode.OK
        await Beats(worker).beat()
        actor = coordinator.run("test")
        assert actor.state.workers["w-0"].state is WorkerState.READY
        events = {e.type for e in await coordinator.events(actor, 0)}
        assert not events & {EventType.WORKER_LOST, EventType.WORKER_LEFT}


async def test_streams_are_counted_as_they_end_and_their_length_is_no_time_of_a_call(
    tmp_path: Path,
):
    async with serving(tmp_path, run_spec(), metrics_address="127.0.0.1:0") as served:
        beats = Beats(await served.worker("w-0"))
        await beats.beat()
        await beats.stream.done_writing()
        await beats.stream.code()
        address = served.aggregator.metrics_address
        page = await asyncio.to_thread(scrape, address)
        assert 'fedlora_rpcs_total{code="OK",method="KeepAlive"} 1.0' in page
        assert 'fedlora_rpc_duration_seconds_count{method="Register"} 1.0' in page
        assert 'duration_seconds_count{method="KeepAlive"}' not in page


def test_a_server_has_room_for_two_calls_of_each_of_two_thousand_workers():
    assert AggregatorConfig().max_concurrent_rpcs >= 2 * 2000
