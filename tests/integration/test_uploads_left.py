"""What is left on the server's disk of uploads that were begun and never ended."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from safetensors.torch import save
from support.federation import random_adapter, reason_of, serving, upload
from support.runs import run_spec

from fedlora.proto.v1 import federation_pb2 as pb


async def test_a_worker_leaves_the_bytes_of_one_upload_whatever_it_calls_them(tmp_path: Path):
    uploads = tmp_path / "state" / "uploads"
    async with serving(tmp_path, run_spec(num_workers=1)) as served:
        worker = await served.worker("w-0")
        task = await worker.task()
        tensors = random_adapter(worker.rank, seed=0)
        data = save(tensors)
        for key in ("a", "b", "c"):
            header = worker.header(task, tensors, data, idempotency_key=key)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.push_messages(upload(header, data, commit=False))
            assert reason_of(caught.value) == "UPLOAD_INCOMPLETE"
        (left,) = uploads.iterdir()
        assert left.stat().st_size == len(data)
        assert (await worker.upload_status("c")).durable_bytes == len(data)
        assert (await worker.upload_status("a")).state == pb.UPLOAD_STATE_UNKNOWN
        await worker.push(task, tensors, idempotency_key="a", num_examples=0)
        assert not list(uploads.iterdir())
