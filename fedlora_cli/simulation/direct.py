"""The server as a worker of the same process reaches it: calls of its own objects, no socket.

`client_worker.transport.client.FederationClient` says the same over gRPC. What that adds, messages,
deadlines, resumed transfers, has no part here; what the server checks, it checks here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from aggregator_service.uploads import Uploads
from aggregator_service.worker_calls import WorkerCalls
from client_worker.transport.calls import Guard
from fedlora.adapters.spec import AdapterLayout
from fedlora.runs.tasks import (
    Acknowledgement,
    AdapterHeader,
    Capabilities,
    Directive,
    Evaluation,
    Progress,
    Registration,
    Task,
    UpdateHeader,
    UploadStatus,
)
from fedlora.tensors.safetensors_io import Payload
from fedlora.wire.stream import Chunk, Commit

__all__ = ["DirectFederation"]

T = TypeVar("T")


class DirectFederation:
    """A `client_worker.ports.Federation`; its methods may be called from several threads.

    Args:
        workers: what they may do at the server.
        uploads: takes updates.
        loop: where both live, in another thread than the callers'.
        guard: `StopRequest.cancelling`, so that a request to stop ends any call.
        turn: held by the worker's thread, and given to another one while it waits for a task.
    """

    def __init__(
        self,
        workers: WorkerCalls,
        uploads: Uploads,
        loop: asyncio.AbstractEventLoop,
        *,
        guard: Guard,
        turn: Lock,
    ) -> None:
        self._workers = workers
        self._uploads = uploads
        self._loop = loop
        self._guard = guard
        self._turn = turn

    def register(
        self, *, worker_name: str, run_name: str, instance_id: str, capabilities: Capabilities
    ) -> Registration:
        """Opens a session."""
        return self._await(
            self._workers.register(
                name=worker_name,
                run_name=run_name,
                instance_id=instance_id,
                capabilities=capabilities,
            )
        )

    def confirm_adapter(self, token: str, layout: AdapterLayout) -> str:
        """Declares the adapter; returns the base fingerprint that the run is on."""
        return self._await(self._workers.confirm_adapter(token, layout))

    def await_task(self, token: str, *, max_wait_seconds: float) -> Task:
        """The next task, or TaskKind.WAIT after the time given."""
        self._turn.release()
        try:
            return self._await(self._workers.await_task(token, max_wait_seconds))
        finally:
            self._turn.acquire()

    def pull_adapter(
        self,
        token: str,
        version: int,
        *,
        folder: Path,  # noqa: ARG002 - nothing is copied
        expected_bytes: int,  # noqa: ARG002 - no deadline
        held_version: int | None = None,
    ) -> tuple[AdapterHeader, Path]:
        """A version of the global adapter, in the server's own file."""
        return self._await(self._pull(token, version, held_version))

    def upload_status(self, token: str, idempotency_key: str) -> UploadStatus:
        """Whether an update is here, or how much of it."""
        return self._await(self._uploads.status(token, idempotency_key))

    def push_update(
        self, header: UpdateHeader, payload: Payload, *, max_chunk_bytes: int
    ) -> Acknowledgement:
        """Hands an update over, from its first byte."""
        messages = _messages(payload, max_chunk_bytes)
        return self._await(self._uploads.receive(replace(header, start_offset=0), messages))

    def report_evaluation(
        self, token: str, task_id: str, evaluations: tuple[Evaluation, ...]
    ) -> None:
        """Scores of the global adapter."""
        self._await(self._workers.report_evaluation(token, task_id, evaluations))

    def report_metrics(self, token: str, progress: Progress) -> None:
        """How far training has got."""
        self._await(_called(lambda: self._workers.report_progress(token, progress)))

    def heartbeat(self, token: str, task_id: str, *, answered: bool) -> Directive:  # noqa: ARG002
        """Proof of life, and whether the task in hand still counts."""
        return self._await(_called(lambda: self._workers.heartbeat(token, task_id)))

    def leave(self, token: str, reason: str) -> None:
        """Ends the session."""
        self._await(self._workers.leave(token, reason))

    async def _pull(
        self, token: str, version: int, held_version: int | None
    ) -> tuple[AdapterHeader, Path]:
        # The server keeps the copies that were asked for last, and this one is read at once.
        async with self._workers.adapter(token, version, 0, held_version) as found:
            return found

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self._guard(future.cancel):
            return future.result()


async def _called(work: Callable[[], T]) -> T:
    return work()


async def _messages(payload: Payload, max_chunk_bytes: int) -> AsyncIterator[Chunk | Commit]:
    for offset, views in payload.views(0, max_chunk_bytes):
        yield Chunk(offset, memoryview(b"".join(views)))
    yield Commit(payload.total_bytes, payload.digest)
