"""Downloads whose readers stall or crawl: none keeps its place for good.

gRPC ends the stream of a reader that takes nothing at the call's deadline and never before
(measured, grpcio 1.85.1): a status waits behind the message for which there is no room.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from support.federation import (
    ScriptedWorker,
    Served,
    connected,
    random_adapter,
    reason_of,
    serving,
)
from support.observed_federation import scrape
from support.runs import run_spec
from support.senders import Sender, Update
from support.tcp_proxy import FaultProxy

from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.proto.v1 import federation_pb2 as pb

RANK, WIDTH = 128, 16 * 1024
LAYOUT = AdapterLayout(
    modules=(AdaptedModule(path="wide", in_features=WIDTH, out_features=WIDTH),),
    saved_tensors=(),
    base_fingerprint="sha256:base",
)
"""16 MiB of float32: four times what a stream may have in flight"""


async def test_a_download_without_a_deadline_is_refused_before_it_holds_a_place(tmp_path: Path):
    async with published(tmp_path, max_concurrent_rpcs=1) as (served, worker):
        call = served.federation.PullAdapter(first_version(worker))
        with pytest.raises(grpc.aio.AioRpcError, match="expected to have a deadline") as caught:
            await call.read()
        assert reason_of(caught.value) == "INVALID_ARGUMENT"
        await worker.pull(0)


async def test_a_reader_that_nobody_hears_from_is_gone_at_its_deadline(tmp_path: Path):
    """The server alone ends the stream, and counts it as what it was."""
    settings = {"metrics_address": "127.0.0.1:0", "max_concurrent_rpcs": 1}
    async with (
        published(tmp_path, **settings) as (served, worker),
        FaultProxy(served.address) as proxy,
        connected(proxy.address) as behind,
    ):
        silent = behind.federation.PullAdapter(first_version(worker), timeout=1.0)
        await silent.read()
        proxy.partition()
        codes = set()
        async with asyncio.timeout(20):
            while (code := await pulled(worker)) is not grpc.StatusCode.OK:
                codes.add(code)
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}, "its place was taken until then"
        page = await asyncio.to_thread(scrape, served.aggregator.metrics_address)
        assert 'code="DEADLINE_EXCEEDED",method="PullAdapter"} 1.0' in page


async def test_a_reader_below_the_least_rate_is_given_up_to_be_resumed(tmp_path: Path):
    slow = {"min_bytes_per_second": 64.0 * 1024**2, "min_rate_seconds": 0.3}
    async with published(tmp_path, **slow) as (served, worker):
        call = served.federation.PullAdapter(first_version(worker), timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_slowly(call)
        assert reason_of(caught.value) == "UPLOAD_TOO_SLOW"
        await worker.pull(0)


@asynccontextmanager
async def published(
    folder: Path, **settings: object
) -> AsyncIterator[tuple[Served, ScriptedWorker]]:
    """A server with version 0, and a worker that may read it."""
    spec = run_spec(num_rounds=1, num_workers=1, rank=RANK)
    async with serving(folder, spec, **settings) as served:
        worker = await served.worker("w", layout=LAYOUT)
        update = Update.of(random_adapter(RANK, seed=0, layout=LAYOUT))
        await Sender(worker, await worker.task(), update).send()
        yield served, worker


def first_version(worker: ScriptedWorker) -> pb.PullAdapterRequest:
    return pb.PullAdapterRequest(session_token=worker.token, adapter_version=0)


async def pulled(worker: ScriptedWorker) -> grpc.StatusCode:
    """How a whole download ended."""
    try:
        await worker.pull(0)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def read_slowly(call: grpc.aio.UnaryStreamCall) -> None:
    """A message every tenth of a second, to the end."""
    async for _ in call:
        await asyncio.sleep(0.1)
