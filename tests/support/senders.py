"""Workers that send one update each: as they should, or slowly, or falling silent."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import grpc
import torch
from safetensors.torch import save
from support.federation import ScriptedWorker

from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import tensor_pb2
from fedlora.rpc.channel import MAX_CHUNK_BYTES
from fedlora.rpc.status import from_rpc_error
from fedlora.tensors.manifest import TensorManifest
from fedlora.wire.convert import to_message

__all__ = ["Ended", "Sender", "Update"]

_SOME_BYTES = 64 * 1024
"""that one who falls silent sends first"""

_MESSAGE_SECONDS = 1.0
"""between two messages of a slow one"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the server ended a stream."""

    reason: Reason
    seconds: float
    """since the stream's first message, or its last one if it fell silent"""
    text: str


@dataclass(frozen=True, slots=True)
class Update:
    """An adapter as it is sent."""

    data: bytes
    manifest: TensorManifest
    digest: bytes

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The update of these tensors."""
        data = save(dict(tensors))
        return cls(data, TensorManifest.of(tensors), new_digest(data).digest())


@dataclass(slots=True)
class Sender:
    """A ready worker with its task, and the update that it could send."""

    worker: ScriptedWorker
    task: pb.Task
    update: Update

    @property
    def key(self) -> str:
        """Of its only update."""
        return self.task.task_id

    def messages(
        self, start_offset: int = 0, chunk_bytes: int = MAX_CHUNK_BYTES
    ) -> Iterator[pb.PushUpdateRequest]:
        """The update from an offset on."""
        data = self.update.data
        header = self.worker.header(
            self.task, {}, data, idempotency_key=self.key, manifest=self.update.manifest,
            start_offset=start_offset,
        )  # fmt: skip
        yield pb.PushUpdateRequest(header=to_message(header, pb.UpdateHeader))
        for offset in range(start_offset, len(data), chunk_bytes):
            chunk = data[offset : offset + chunk_bytes]
            yield pb.PushUpdateRequest(chunk=tensor_pb2.PayloadChunk(offset=offset, data=chunk))
        end = tensor_pb2.PayloadCommit(total_bytes=len(data), digest=self.update.digest)
        yield pb.PushUpdateRequest(commit=end)

    async def send(self) -> float:
        """Sends it, however often it takes; returns the seconds."""
        began = time.perf_counter()
        while (error := await self._attempt(await self._held())) is not None:
            if error.reason not in (Reason.SERVER_BUSY, Reason.UNAVAILABLE, Reason.UPLOAD_STALLED):
                raise error
            await asyncio.sleep(max(0.1, error.retry_seconds) * (1 + random.random() / 2))
        return time.perf_counter() - began

    async def fall_silent(self) -> Ended:
        """Sends the header and a little more, then nothing; returns how that ended."""
        while True:
            call = self.worker.stub.PushUpdate()
            began = time.perf_counter()
            try:
                for message in itertools.islice(self.messages(chunk_bytes=_SOME_BYTES), 2):
                    await call.write(message)
                    began = time.perf_counter()
                await call
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                error = await _error_of(call)
                if error.reason is not Reason.SERVER_BUSY:
                    return Ended(error.reason, time.perf_counter() - began, str(error))
                await asyncio.sleep(error.retry_seconds)

    async def crawl(self, bytes_per_second: int, until: float) -> list[Ended]:
        """Sends that slowly, again and again, until a time; returns how each stream ended."""
        ended: list[Ended] = []
        while time.perf_counter() < until:
            call = self.worker.stub.PushUpdate()
            began = time.perf_counter()
            size = int(bytes_per_second * _MESSAGE_SECONDS)
            try:
                for message in self.messages(await self._held(), size):
                    await call.write(message)
                    await asyncio.sleep(_MESSAGE_SECONDS)
                    if time.perf_counter() > until:
                        call.cancel()
                        return ended
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                error = await _error_of(call)
                ended.append(Ended(error.reason, time.perf_counter() - began, str(error)))
                await asyncio.sleep(error.retry_seconds or _MESSAGE_SECONDS)
        return ended

    async def _held(self) -> int:
        return (await self.worker.upload_status(self.key)).durable_bytes

    async def _attempt(self, start_offset: int) -> FedLoraError | None:
        call = self.worker.stub.PushUpdate(timeout=300)
        try:
            for message in self.messages(start_offset):
                await call.write(message)
            await call.done_writing()
            await call
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return await _error_of(call)
        return None


async def _error_of(call: grpc.aio.StreamUnaryCall) -> FedLoraError:
    """Why the server has ended a stream; a write that comes too late does not say."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, peer="the server")
    raise AssertionError("the stream has been acknowledged")
