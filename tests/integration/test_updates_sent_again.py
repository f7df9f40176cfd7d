"""An update that counts already, sent again from anywhere: the same bytes, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from safetensors.torch import save
from support.federation import ScriptedWorker, Served, random_adapter, reason_of, serving, upload
from support.runs import run_spec

from client_worker.transport.client import FederationClient
from fedlora.digests import new_digest
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.tasks import UploadState, UploadStatus
from fedlora.tensors.safetensors_io import encode

CHUNK_BYTES = 500


@asynccontextmanager
async def training(tmp_path: Path) -> AsyncIterator[tuple[Served, ScriptedWorker, pb.Task]]:
    """A round that stays open, and one of its two workers with its task."""
    async with serving(tmp_path, run_spec(num_rounds=1, num_workers=2)) as served:
        worker, _ = [await served.worker(f"w-{i}") for i in range(2)]
        await worker.push(await worker.task(), random_adapter(4, seed=0), num_examples=0)
        yield served, worker, await worker.task()


async def test_what_is_sent_again_may_begin_anywhere(tmp_path: Path):
    async with training(tmp_path) as (_, worker, task):
        tensors = random_adapter(4, seed=1)
        data = save(tensors)

        async def sent_from(start: int) -> pb.PushUpdateResponse:
            header = worker.header(task, tensors, data, start_offset=start)
            return await worker.push_messages(
                upload(header, data, start_offset=start, chunk_bytes=CHUNK_BYTES)
            )

        first = await sent_from(0)
        for start in (0, 1, CHUNK_BYTES, len(data) - 1, len(data)):
            again = await sent_from(start)
            assert (again.update_id, again.replayed) == (first.update_id, True)


async def test_an_update_whose_file_was_put_aside_is_compared_from_its_beginning(tmp_path: Path):
    async with training(tmp_path) as (served, worker, task):
        tensors = random_adapter(4, seed=1)
        data = save(tensors)
        first = await worker.push(task, tensors)
        served.aggregator.coordinator.blobs.path(new_digest(data).hexdigest()).unlink()
        header = worker.header(task, tensors, data, start_offset=1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push_messages(upload(header, data, start_offset=1))
        assert reason_of(caught.value) == "OFFSET_MISMATCH"
        assert (await worker.push(task, tensors)).update_id == first.update_id


@pytest.mark.parametrize("part", ["begins beyond", "other rest", "other", "gap"])
async def test_other_bytes_are_refused_wherever_they_begin(tmp_path: Path, part: str):
    async with training(tmp_path) as (_, worker, task):
        tensors = random_adapter(4, seed=1)
        data, other = save(tensors), save(random_adapter(4, seed=2))
        half = len(data) // 2
        await worker.push(task, tensors, idempotency_key="k")
        start, sent = {
            "begins beyond": (len(data) + 1, data),
            "other rest": (half, data[:half] + other[half:]),
            "other": (len(data), other),
            "gap": (half, data),
        }[part]
        header = worker.header(task, tensors, data, idempotency_key="k", start_offset=start)
        first = start + 1 if part == "gap" else start
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push_messages(upload(header, sent, start_offset=first))
        assert reason_of(caught.value) == "ALREADY_EXISTS"


async def test_a_worker_that_goes_on_while_its_older_stream_commits_is_acknowledged(tmp_path: Path):
    async with training(tmp_path) as (served, worker, task):
        tensors = random_adapter(4, seed=1)
        payload = encode(tensors)
        data = b"".join(bytes(part) for _, part in payload.chunks(0, CHUNK_BYTES))
        header = worker.header(task, tensors, data)
        messages = upload(header, data, chunk_bytes=CHUNK_BYTES)
        older = served.federation.PushUpdate(timeout=30)
        for message in messages[:3]:
            await older.write(message)
        while not (await worker.upload_status(header.idempotency_key)).durable_bytes:
            pass
        loop, answers = asyncio.get_running_loop(), []

        async def finish() -> None:
            for message in messages[3:]:
                await older.write(message)
            await older.done_writing()
            answers.append(await older)

        class Overtaken(FederationClient):
            """Learns how far the upload is just before it is done."""

            def upload_status(self, token: str, key: str) -> UploadStatus:
                status = super().upload_status(token, key)
                assert status.state is UploadState.PARTIAL
                asyncio.run_coroutine_threadsafe(finish(), loop).result(30)
                return status

        with Overtaken(served.address) as client:
            again = await asyncio.to_thread(
                client.push_update, header, payload, max_chunk_bytes=CHUNK_BYTES
            )
        assert (again.update_id, again.replayed) == (answers[0].update_id, True)
