"""A real aggregator on a real socket, and workers that a test moves step by step.

`ScriptedWorker` speaks to the generated asyncio stubs only; it trains nothing, so a test decides
every tensor and every byte that crosses the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from safetensors.torch import load, save
from support.runs import LAYOUT

from aggregator_service.app import Aggregator
from aggregator_service.config import AggregatorConfig
from fedlora.adapters.spec import AdapterLayout
from fedlora.codecs.spec import CodecName
from fedlora.digests import new_digest
from fedlora.plugins import PLUGINS
from fedlora.proto.v1 import (
    adapter_pb2,
    admin_pb2,
    admin_pb2_grpc,
    federation_pb2_grpc,
    run_pb2,
    tensor_pb2,
)
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.channel import client_options
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, UpdateHeader
from fedlora.tensors.manifest import TensorManifest
from fedlora.wire.convert import to_message

CHUNK_BYTES = 256


def config(tmp_path: Path, **settings: Any) -> AggregatorConfig:
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "state_dir": tmp_path / "state",
        "device": "cpu",
        "shutdown_grace_seconds": 2.0,
    }
    return AggregatorConfig(**{**defaults, **settings})


@asynccontextmanager
async def serving(tmp_path: Path, run: RunSpec | None, **settings: Any) -> AsyncIterator[Served]:
    """An aggregator in this process and one channel to it."""
    async with (
        Aggregator(config(tmp_path, **settings), run) as aggregator,
        connected(aggregator.address) as served,
    ):
        served.aggregator = aggregator
        yield served


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Served]:
    """A channel to an aggregator at an address."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        yield Served(channel, address)


class Served:
    """Stubs for one aggregator."""

    aggregator: Aggregator

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self.channel = channel
        self.address = address
        self.federation = federation_pb2_grpc.FederationServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)

    async def worker(
        self, name: str, *, layout: AdapterLayout = LAYOUT, max_rank: int = 0
    ) -> ScriptedWorker:
        """A worker that has registered and confirmed the adapter."""
        worker = ScriptedWorker(self.federation, name)
        await worker.register(max_rank=max_rank)
        await worker.confirm(layout)
        return worker

    async def rounds(self, run: str) -> list[run_pb2.RoundReport]:
        """Reports of the run's completed rounds."""
        request = admin_pb2.ListRoundsRequest(run=run)
        return [r.round async for r in self.admin.ListRounds(request, timeout=60)]


class ScriptedWorker:
    """One worker, moved by hand."""

    def __init__(self, stub: Any, name: str, instance_id: str = "instance-1") -> None:
        self.stub = stub
        self.name = name
        self.instance_id = instance_id
        self.token = ""
        self.run_id = ""
        self.rank = 0

    async def register(self, *, run_name: str = "", max_rank: int = 0) -> pb.RegisterResponse:
        response = await self.stub.Register(
            pb.RegisterRequest(
                worker_name=self.name,
                run_name=run_name,
                instance_id=self.instance_id,
                capabilities=to_message(
                    Capabilities(
                        max_rank=max_rank, codecs=tuple(CodecName), plugins=tuple(PLUGINS)
                    ),
                    pb.Capabilities,
                ),
            ),
            timeout=30,
        )
        self.token, self.run_id = response.session_token, response.run_id
        self.rank = response.rank
        return response

    async def confirm(self, layout: AdapterLayout = LAYOUT) -> pb.ConfirmAdapterResponse:
        return await self.stub.ConfirmAdapter(
            pb.ConfirmAdapterRequest(
                session_token=self.token, layout=to_message(layout, adapter_pb2.AdapterLayout)
            ),
            timeout=30,
        )

    async def task(self, max_wait_seconds: float = 30.0) -> pb.Task:
        response = await self.stub.AwaitTask(
            pb.AwaitTaskRequest(session_token=self.token, max_wait_seconds=max_wait_seconds),
            timeout=max_wait_seconds + 30,
        )
        return response.task

    async def pull(
        self, version: int, start_offset: int = 0
    ) -> tuple[pb.AdapterHeader, bytes, pb.PullAdapterResponse]:
        request = pb.PullAdapterRequest(
            session_token=self.token, adapter_version=version, start_offset=start_offset
        )
        messages = [m async for m in self.stub.PullAdapter(request, timeout=30)]
        data = b"".join(m.chunk.data for m in messages[1:-1])
        return messages[0].header, data, messages[-1]

    async def pull_tensors(self, version: int) -> dict[str, torch.Tensor]:
        _, data, _ = await self.pull(version)
        return load(data)

    def header(
        self, task: pb.Task, tensors: Mapping[str, torch.Tensor], data: bytes, **changes: Any
    ) -> UpdateHeader:
        fields: dict[str, Any] = {
            "session_token": self.token,
            "run_id": self.run_id,
            "task_id": task.task_id,
            "round": task.round,
            "base_version": task.adapter_version,
            "idempotency_key": f"{task.task_id}.{new_digest(data).hexdigest()[:16]}",
            "total_bytes": len(data),
            "manifest": TensorManifest.of(tensors),
            "num_examples": 10,
        }
        return UpdateHeader(**{**fields, **changes})

    async def push(
        self, task: pb.Task, tensors: Mapping[str, torch.Tensor], **changes: Any
    ) -> pb.PushUpdateResponse:
        data = save(dict(tensors))
        header = self.header(task, tensors, data, **changes)
        return await self.push_messages(upload(header, data))

    async def push_messages(
        self, messages: Iterable[pb.PushUpdateRequest], timeout_seconds: float = 60
    ) -> pb.PushUpdateResponse:
        messages = list(messages)
        while True:
            try:
                return await self.stub.PushUpdate(iter(messages), timeout=timeout_seconds)
            except grpc.aio.AioRpcError as error:
                if not hides_the_answer(error):
                    raise

    async def upload_status(self, key: str) -> pb.GetUploadStatusResponse:
        return await self.stub.GetUploadStatus(
            pb.GetUploadStatusRequest(session_token=self.token, idempotency_key=key), timeout=30
        )

    async def evaluate(self, task: pb.Task, accuracy: float = 0.5) -> None:
        from fedlora.proto.v1 import run_pb2

        score = run_pb2.Evaluation(
            scope=run_pb2.EVALUATION_SCOPE_GLOBAL,
            split=run_pb2.EVALUATION_SPLIT_TEST,
            num_examples=10,
            metrics={"accuracy": accuracy},
        )
        await self.stub.ReportEvaluation(
            pb.ReportEvaluationRequest(
                session_token=self.token, task_id=task.task_id, evaluations=[score]
            ),
            timeout=30,
        )


def upload(
    header: UpdateHeader,
    data: bytes,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    start_offset: int = 0,
    commit: bool = True,
) -> list[pb.PushUpdateRequest]:
    """The messages of one upload, to be bent by a test."""
    messages = [pb.PushUpdateRequest(header=to_message(header, pb.UpdateHeader))]
    for offset in range(start_offset, len(data), chunk_bytes):
        chunk = tensor_pb2.PayloadChunk(offset=offset, data=data[offset : offset + chunk_bytes])
        messages.append(pb.PushUpdateRequest(chunk=chunk))
    if commit:
        end = tensor_pb2.PayloadCommit(total_bytes=len(data), digest=new_digest(data).digest())
        messages.append(pb.PushUpdateRequest(commit=end))
    return messages


def random_adapter(
    rank: int, seed: int, *, layout: AdapterLayout = LAYOUT, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """An adapter of a layout with seeded normal entries."""
    generator = torch.Generator().manual_seed(seed)
    from fedlora.tensors.manifest import DataType

    manifest = layout.manifest(rank, DataType.F32)
    return {t.name: scale * torch.randn(t.shape, generator=generator) for t in manifest.tensors}


def hides_the_answer(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC has made an error up in place of the server's answer.

    A write on a stream that the server has ended does so now and then: a worker asks again, and so
    does a test. An error of the server says more.
    """
    return error.code() is grpc.StatusCode.INTERNAL and rpc_status.from_call(error) is None


def reason_of(error: grpc.RpcError) -> str:
    """The machine-readable reason of an error that came over the wire."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "fedlora"
    return info.reason
