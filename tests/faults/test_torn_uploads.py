"""Uploads that end anywhere, in five ways: none becomes an update, and each can go on.

The end of a stream looks normal to the server, even if the client was killed in the middle: only
the commit at its end makes an update of it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.federation import ScriptedWorker, Served, random_adapter, serving, upload
from support.proxied_connection import Cut
from support.runs import run_spec
from support.seeds import seeds_for
from support.tcp_proxy import FaultProxy
from support.uploading_process import uploading
from support.waiting import until

from aggregator_service.store.upload_writer import UploadWriter
from client_worker.patience import Patience
from client_worker.transport.client import FederationClient
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.rpc.channel import client_options
from fedlora.runs.tasks import UpdateHeader
from fedlora.tensors.safetensors_io import Payload, encode

RANK = 64
CHUNK_BYTES = 1000
IDLE_TIMEOUT_SECONDS = 0.5

PREFACE_BYTES = 2000
"""more than HTTP/2 takes to begin a stream"""

ENVELOPE_BYTES = 50
"""more than it takes for a message, beside the chunk"""


@dataclass
class Torn:
    """An upload that is about to be torn."""

    served: Served
    worker: ScriptedWorker
    header: UpdateHeader
    payload: Payload
    data: bytes
    folder: Path

    @property
    def messages(self) -> list[pb.PushUpdateRequest]:
        return upload(self.header, self.data, chunk_bytes=CHUNK_BYTES)

    @property
    def envelope_bytes(self) -> int:
        """At most so much crosses the wire before the first chunk."""
        return self.messages[0].ByteSize() + PREFACE_BYTES

    async def status(self) -> pb.GetUploadStatusResponse:
        return await self.worker.upload_status(self.header.idempotency_key)

    async def until_held(self, num_bytes: int) -> None:
        """The server has taken so much of the payload, or more."""
        await until(lambda: self.bytes_on_disk() >= num_bytes)

    def bytes_on_disk(self) -> int:
        """Of the only partial file, which must be a beginning of the payload."""
        for part in (self.folder / "state" / "uploads").iterdir():
            held = part.read_bytes()
            assert self.data.startswith(held)
            return len(held)
        return 0

    async def until_given_up(self) -> None:
        """The server has let go of the stream."""
        await until(lambda: not self.served.aggregator.coordinator.blobs._open)


# --- ways to end ---------------------------------------------------------------------------


@asynccontextmanager
async def cut_at(torn: Torn, num_bytes: int, how: Cut) -> AsyncIterator[FaultProxy]:
    """A link of this upload's own, cut after so many bytes however often it is dialled."""
    async with FaultProxy(torn.served.address) as proxy:
        proxy.cut_after(*[num_bytes] * 10, how=how)
        yield proxy


async def killed(torn: Torn, offset: int) -> None:
    async with cut_at(torn, offset, Cut.SILENT) as proxy:
        with uploading(proxy.address, torn.messages, torn.folder / "messages") as process:
            await proxy.wait_until(lambda: proxy.num_cut == 1)
            process.kill()
            await proxy.wait_until(lambda: not proxy.connections[0].is_open)


async def frozen(torn: Torn, offset: int) -> None:
    async with cut_at(torn, offset, Cut.SILENT) as proxy:
        with uploading(proxy.address, torn.messages, torn.folder / "messages") as process:
            await proxy.wait_until(lambda: proxy.num_cut == 1)
            process.send_signal(signal.SIGSTOP)
            whole_chunks = (offset - torn.envelope_bytes) // (CHUNK_BYTES + ENVELOPE_BYTES)
            await torn.until_held(max(0, whole_chunks) * CHUNK_BYTES)
            # Nobody has closed anything: it is for the server to notice.
            await torn.until_given_up()
            assert proxy.connections[0].is_open


async def reset(torn: Torn, offset: int) -> None:
    async with (
        cut_at(torn, offset, Cut.RESET) as proxy,
        grpc.aio.insecure_channel(proxy.address, options=client_options()) as channel,
    ):
        stub = federation_pb2_grpc.FederationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PushUpdate(iter(torn.messages), timeout=30)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


async def begun(torn: Torn, offset: int) -> grpc.aio.StreamUnaryCall:
    """A stream that has brought the first `offset` bytes of the payload, and waits."""
    call = torn.served.federation.PushUpdate(timeout=30)
    for message in upload(torn.header, torn.data[:offset], chunk_bytes=CHUNK_BYTES, commit=False):
        await call.write(message)
    await torn.until_held(offset)
    return call


async def cancelled(torn: Torn, offset: int) -> None:
    call = await begun(torn, offset)
    call.cancel()


async def closed_without_commit(torn: Torn, offset: int) -> None:
    call = await begun(torn, offset)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.ABORTED


Way = Callable[[Torn, int], Awaitable[None]]
WAYS: tuple[Way, ...] = (closed_without_commit, cancelled, killed, reset, frozen)

# --- what must hold ------------------------------------------------------------------------


async def assert_nothing_counts(torn: Torn) -> None:
    coordinator = torn.served.aggregator.coordinator
    rows = await coordinator.store.call(lambda s: s.updates(torn.worker.run_id, torn.header.round))
    assert torn.worker.name not in {row.worker for row in rows}
    assert not coordinator.blobs.path(torn.payload.digest.hex()).exists()
    # Bytes that were on their way may still come to rest.
    while (status := await torn.status()).durable_bytes != torn.bytes_on_disk():
        pass
    assert status.state == (
        pb.UPLOAD_STATE_PARTIAL if status.durable_bytes else pb.UPLOAD_STATE_UNKNOWN
    )


async def resume(torn: Torn) -> None:
    """As the worker does, by the worker's own client."""
    with FederationClient(torn.served.address) as client:
        acknowledgement = await asyncio.to_thread(
            Patience(limit_seconds=30).insist,
            "resuming",
            lambda: client.push_update(torn.header, torn.payload, max_chunk_bytes=CHUNK_BYTES),
        )
    assert not acknowledgement.replayed


async def tear_all(folder: Path, ways: Sequence[Way], seed: int) -> None:
    """One round in which every worker's upload is torn once, and then goes on to its end."""
    rng = random.Random(seed)
    # Workers that are moved by hand send no heartbeats, and one waits for the other.
    patient = {"idle_timeout_seconds": IDLE_TIMEOUT_SECONDS, "worker_timeout_seconds": 3600.0}
    spec = run_spec(num_rounds=1, num_workers=len(ways), rank=RANK, deadline_seconds=3600.0)
    async with serving(folder, spec, **patient) as served:
        workers = [await served.worker(f"w-{i:03}") for i in range(len(ways))]
        await workers[0].push(await workers[0].task(), random_adapter(RANK, seed=0))
        digests = {}
        for i, (worker, way) in enumerate(zip(workers, ways, strict=True)):
            tensors = random_adapter(RANK, seed=1 + i)
            payload = encode(tensors)
            data = b"".join(piece for _, piece in payload.chunks(0, CHUNK_BYTES))
            header = worker.header(await worker.task(), tensors, data)
            torn = Torn(served, worker, header, payload, data, folder)
            # The first loses nothing but its commit.
            offset = rng.randrange(1, len(data)) if i else len(data)
            await way(torn, offset)
            await torn.until_given_up()
            await assert_nothing_counts(torn)
            await resume(torn)
            digests[worker.name] = payload.digest.hex()
        rows = await served.aggregator.coordinator.store.call(
            lambda s: s.updates(workers[0].run_id, 1)
        )
        assert {row.worker: row.digest for row in rows} == digests
        assert len(rows) == len(ways)
        assert list((folder / "state" / "uploads").iterdir()) == []


@pytest.mark.parametrize("seed", seeds_for("test_a_torn_upload_is_no_update_and_goes_on", 1))
async def test_a_torn_upload_is_no_update_and_goes_on(tmp_path: Path, seed: int):
    await tear_all(tmp_path, [WAYS[i % len(WAYS)] for i in range(25)], seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("seed", seeds_for("test_a_torn_upload_at_200_places", 1, fresh=True))
async def test_a_torn_upload_at_200_places(tmp_path: Path, way: Way, seed: int):
    await tear_all(tmp_path, [way] * 200, seed)


async def test_an_upload_cancelled_while_it_is_opened_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with serving(tmp_path, run_spec(num_rounds=1, num_workers=1)) as served:
        worker = await served.worker("w")
        task, tensors = await worker.task(), random_adapter(4, seed=1)
        blobs = served.aggregator.coordinator.blobs
        open_upload, opening, may_open = blobs.open_upload, threading.Event(), threading.Event()
        opened: list[UploadWriter] = []

        def slowly(*args: Any, **kwargs: Any) -> UploadWriter:
            opening.set()
            assert may_open.wait(30)
            opened.append(open_upload(*args, **kwargs))
            return opened[-1]

        monkeypatch.setattr(blobs, "open_upload", slowly)
        push = asyncio.create_task(worker.push(task, tensors))
        await until(opening.is_set)
        push.cancel()
        await asyncio.gather(push, return_exceptions=True)
        # The server has heard of it once another call has got through.
        await worker.task(0.0)
        may_open.set()
        await until(lambda: opened != [] and not blobs._open)
        assert not (await worker.push(task, tensors)).replayed
