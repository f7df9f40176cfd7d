"""Many uploads at once, most of them stalled or slow: the honest ones hardly notice.

The short forms run in CI with short timeouts; the full one is the promise with the defaults.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from support.crowd import Met, gathered, meet, p99
from support.federation import reason_of
from support.senders import Sender

from fedlora.errors import Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.channel import MAX_MESSAGE_BYTES

NUM_READERS = 32


def assert_bounds(met: Met, *, idle_timeout_seconds: float) -> None:
    assert p99(met.honest) < p99(met.idle) + 2.0
    assert met.grown_bytes < 200e6
    assert {ended.reason for ended in met.stalled} == {Reason.UPLOAD_STALLED}
    assert max(ended.seconds for ended in met.stalled) < idle_timeout_seconds + 1.0
    assert {ended.reason for ended in met.slow} == {Reason.UPLOAD_TOO_SLOW}


async def test_honest_uploads_among_stalled_and_slow_ones_are_not_held_up(tmp_path: Path):
    short = {"idle_timeout_seconds": 2.0, "min_rate_seconds": 3.0}
    async with gathered(tmp_path, 20 + 5 + 2 * 2 * 3, rank=64, **short) as crowd:
        met = await meet(crowd, stalled=20, slow=5, lanes=2, uploads=3, seconds=5.0)
    assert_bounds(met, idle_timeout_seconds=2.0)
    assert len(met.slow) >= 5


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_200_stalled_and_50_slow_uploads_do_not_hold_up_8_honest_ones(tmp_path: Path):
    async with gathered(tmp_path, 200 + 50 + 2 * 8 * 15, rank=512) as crowd:
        met = await meet(crowd, stalled=200, slow=50, lanes=8, uploads=15, seconds=60.0)
    assert_bounds(met, idle_timeout_seconds=30.0)
    assert len(met.slow) >= 50


async def test_where_all_places_are_stalled_one_goes_to_who_waits(tmp_path: Path):
    """Once it is behind for as long as a chunk may take, and not only at the idle timeout."""
    full = {"max_uploads": 1, "min_bytes_per_second": 1024**2, "idle_timeout_seconds": 60.0}
    async with gathered(tmp_path, 2, rank=64, **full) as crowd:
        stalled, honest = crowd.take(2)
        silent = asyncio.create_task(stalled.fall_silent())
        await until_held(stalled)
        assert await honest.send() < 30.0
        assert "others wait for this upload's place" in (await silent).text


async def test_over_capacity_uploads_are_told_when_to_come_back_and_all_get_through(
    tmp_path: Path,
):
    narrow = {"max_uploads": 2, "upload_wait_seconds": 0.05}
    async with gathered(tmp_path, 8, rank=64, **narrow) as crowd:
        await crowd.honest([[sender] for sender in crowd.take(8)])
        assert '"SERVER_BUSY"' in crowd.server.log


async def test_a_newer_stream_does_not_wait_for_the_idle_timeout_of_a_silent_one(tmp_path: Path):
    async with gathered(tmp_path, 1, rank=64, idle_timeout_seconds=60.0) as crowd:
        (sender,) = crowd.take(1)
        silent = asyncio.create_task(sender.fall_silent())
        await until_held(sender)
        assert await sender.send() < 30.0
        assert (await silent).reason is Reason.UNAVAILABLE


async def test_a_stream_without_a_header_ends_at_the_idle_timeout(tmp_path: Path):
    async with gathered(tmp_path, 1, rank=64, idle_timeout_seconds=0.5) as crowd:
        (sender,) = crowd.take(1)
        call = sender.worker.stub.PushUpdate(timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert reason_of(caught.value) == "UPLOAD_STALLED"


async def test_a_reader_that_stalls_holds_no_more_than_a_message(tmp_path: Path):
    async with gathered(tmp_path, NUM_READERS + 1, rank=1024) as crowd:
        (other,) = crowd.take(1)
        await other.worker.pull(0)
        before = crowd.server.rss_anon_bytes()
        calls = [await begin_to_read(reader) for reader in crowd.take(NUM_READERS)]
        # Somebody else reads all of it: what the server sends unread is sent by then.
        await other.worker.pull(0)
        assert crowd.server.rss_anon_bytes() - before < NUM_READERS * MAX_MESSAGE_BYTES
        assert not any(call.done() for call in calls)


async def begin_to_read(reader: Sender) -> grpc.aio.UnaryStreamCall:
    """A download of 8 MiB of which only the header is read."""
    request = pb.PullAdapterRequest(session_token=reader.worker.token, adapter_version=0)
    call = reader.worker.stub.PullAdapter(request, timeout=60)
    await call.read()
    return call


async def until_held(sender: Sender) -> None:
    """Some of the update is on the server."""
    while (await sender.worker.upload_status(sender.key)).state != pb.UPLOAD_STATE_PARTIAL:
        pass
