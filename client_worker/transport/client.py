"""FederationClient: the server's calls in domain types, one attempt each.

Retries are of three kinds and none is here: gRPC's own for small idempotent calls, by the channel's
service config, `client_worker.transport.keep_alive`'s for heartbeats, which share a stream, and
`client_worker.patience` around everything. No retry policy may stand on a stream: gRPC would lose
messages silently (measured, grpc 1.85.1). Uploads and downloads begin every attempt by finding out
how much is there, so that repeating them is resuming them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc
import structlog

from client_worker.transport.calls import (
    CONTROL_SECONDS,
    Guard,
    Method,
    call,
    stream,
    transfer_seconds,
    unguarded,
)
from client_worker.transport.download import AdapterFolder, read_header
from client_worker.transport.keep_alive import KeepAlive
from fedlora.adapters.spec import AdapterLayout
from fedlora.digests import DIGEST_NAME
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import adapter_pb2, federation_pb2_grpc, run_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.channel import MAX_CHUNK_BYTES
from fedlora.rpc.payload_methods import pull_adapter, push_update
from fedlora.rpc.security import PLAIN_TEXT
from fedlora.runs.tasks import (
    Acknowledgement,
    AdapterHeader,
    Capabilities,
    Directive,
    Evaluation,
    Limits,
    Progress,
    Registration,
    Task,
    UpdateHeader,
    UploadState,
    UploadStatus,
)
from fedlora.tensors.safetensors_io import Payload
from fedlora.wire.convert import from_message, to_message
from fedlora.wire.payload import encode_chunk, encode_commit
from fedlora.wire.stream import Chunk

__all__ = ["LEAVE_SECONDS", "Dialler", "FederationClient"]

log = structlog.get_logger(__name__)

M = TypeVar("M")

_HEARTBEAT_SECONDS = 10.0
"""below the default interval of 15 s: a late one must not delay the next"""

_METRICS_SECONDS = 3.0
LEAVE_SECONDS = 5.0
"""nobody waits longer for a goodbye; the server would miss the worker soon anyway"""

_CONFIRM_SECONDS = 60.0
"""the server stores the layout, and a large model has thousands of modules"""

_POLL_MARGIN_SECONDS = 15.0
"""on top of a poll's own length"""


class Dialler(Protocol):
    """`fedlora.rpc.security.ClientSecurity`, or something around it."""

    def dial(self, address: str) -> grpc.Channel:
        """A channel to `host:port`."""
        ...

    def stamp(self) -> object:
        """Changes whenever `dial` would show something else."""
        ...


class FederationClient:
    """One worker's channel to a server. Its methods may be called from several threads.

    Args:
        address: host:port.
        guard: `StopRequest.cancelling`, so that a signal ends any call but `leave`.
        dialler: opens channels, another one once what the worker has to show has changed.
        on_received, on_sent: told the payload bytes of each message.
    """

    def __init__(
        self,
        address: str,
        *,
        guard: Guard = unguarded,
        dialler: Dialler = PLAIN_TEXT,
        on_received: Callable[[int], None] = lambda _: None,
        on_sent: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._guard = guard
        self._address = address
        self._on_received, self._on_sent = on_received, on_sent
        self._min_bytes_per_second = Limits().min_bytes_per_second
        self._dialler = dialler
        self._dialling = threading.Lock()
        self._connections = [_Connection(dialler, address)]
        self._keep_alive = KeepAlive(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all channels and calls under way."""
        self._keep_alive.close()
        for connection in self._connections:
            connection.channel.close()

    @property
    def _stub(self) -> federation_pb2_grpc.FederationServiceStub:
        return self._connection.stub

    @property
    def _connection(self) -> _Connection:
        """The newest; calls on older ones come to their end."""
        with self._dialling:
            newest = self._connections[-1]
            if newest.stamp != self._dialler.stamp():
                newest = _Connection(self._dialler, self._address)
                self._connections.append(newest)
                log.info("redialled", server=self._address)
            return newest

    # --- session -------------------------------------------------------------------------

    def register(
        self, *, worker_name: str, run_name: str, instance_id: str, capabilities: Capabilities
    ) -> Registration:
        """Opens a session; NO_OPEN_RUN, NO_FREE_SLOT, NOT_FOUND if there is no place."""
        request = pb.RegisterRequest(
            worker_name=worker_name,
            run_name=run_name,
            instance_id=instance_id,
            capabilities=to_message(capabilities, pb.Capabilities),
        )
        registration = from_message(self._call(self._stub.Register, request), Registration)
        self._min_bytes_per_second = registration.limits.min_bytes_per_second
        return registration

    def confirm_adapter(self, token: str, layout: AdapterLayout) -> str:
        """Declares the adapter; BASE_MISMATCH or LAYOUT_MISMATCH if it is not the run's."""
        request = pb.ConfirmAdapterRequest(
            session_token=token, layout=to_message(layout, adapter_pb2.AdapterLayout)
        )
        response = self._call(self._stub.ConfirmAdapter, request, seconds=_CONFIRM_SECONDS)
        return response.base_fingerprint

    def heartbeat(self, token: str, task_id: str, *, answered: bool = True) -> Directive | None:
        """Proves life; says whether the task in hand still counts.

        Without `answered` it need not: None if the beat went out over a stream that stands.
        """
        method = self._stub.KeepAlive
        request = pb.HeartbeatRequest(session_token=token, task_id=task_id)
        if not answered and self._keep_alive.beat_unanswered(method, request):
            return None
        response = self._keep_alive.beat(method, request, seconds=_HEARTBEAT_SECONDS)
        abandon = response.directive == pb.DIRECTIVE_ABANDON_TASK
        return Directive.ABANDON_TASK if abandon else Directive.CONTINUE

    def leave(self, token: str, reason: str) -> None:
        """Ends the session."""
        request = pb.LeaveRequest(session_token=token, reason=reason)
        # Unguarded: it is the last call of a worker that was stopped.
        call(
            self._stub.Leave,
            request,
            seconds=LEAVE_SECONDS,
            peer=self._address,
            guard=unguarded,
        )

    # --- tasks ---------------------------------------------------------------------------

    def await_task(self, token: str, *, max_wait_seconds: float) -> Task:
        """The next task, or TaskKind.WAIT after the time given."""
        request = pb.AwaitTaskRequest(session_token=token, max_wait_seconds=max_wait_seconds)
        seconds = max_wait_seconds + _POLL_MARGIN_SECONDS
        response = self._call(self._stub.AwaitTask, request, seconds=seconds)
        return from_message(response.task, Task)

    def report_evaluation(
        self, token: str, task_id: str, evaluations: tuple[Evaluation, ...]
    ) -> None:
        """Reports scores of the global adapter; the first report of a task counts."""
        request = pb.ReportEvaluationRequest(
            session_token=token,
            task_id=task_id,
            evaluations=[to_message(e, run_pb2.Evaluation) for e in evaluations],
        )
        self._call(self._stub.ReportEvaluation, request)

    def report_metrics(self, token: str, progress: Progress) -> None:
        """Tells watchers how far training has got."""
        request = pb.ReportMetricsRequest(
            session_token=token, progress=to_message(progress, pb.Progress)
        )
        self._call(self._stub.ReportMetrics, request, seconds=_METRICS_SECONDS)

    # --- payloads ------------------------------------------------------------------------

    def pull_adapter(
        self,
        token: str,
        version: int,
        *,
        folder: Path,
        expected_bytes: int,
        held_version: int | None = None,
    ) -> tuple[AdapterHeader, Path]:
        """A version of the global adapter as a verified file.

        Args:
            token: of the session.
            version: of the adapter.
            folder: keeps adapters by digest and the beginnings of interrupted downloads.
            expected_bytes: about how much will come; sets the deadline.
            held_version: an earlier version that the caller holds whole; what has not changed
                since may be left out, and the header then repeats the number.

        Raises:
            FedLoraError: NOT_FOUND; UNAVAILABLE or UPLOAD_INCOMPLETE if the stream was cut, to be
                called again; DIGEST_MISMATCH if other bytes came than the header promised.
        """
        adapters = AdapterFolder(folder)
        # By session, so by run and rank: an equal version of another run is another adapter.
        partial = adapters.partial(self._address, token, version, held_version)
        offset = partial.stat().st_size if partial.exists() else 0
        request = pb.PullAdapterRequest(
            session_token=token,
            adapter_version=version,
            start_offset=offset,
            held_version=held_version,
        )
        responses = self._connection.pull_adapter(
            request, timeout=self._seconds_for(expected_bytes)
        )
        with stream(responses, peer=self._address, guard=self._guard) as messages:
            header = read_header(next(messages, None))
            path = adapters.find(header) or adapters.receive(
                header, self._counted(messages), partial
            )
            return header, path

    def upload_status(self, token: str, idempotency_key: str) -> UploadStatus:
        """How much of an upload the server holds."""
        request = pb.GetUploadStatusRequest(session_token=token, idempotency_key=idempotency_key)
        return from_message(self._call(self._stub.GetUploadStatus, request), UploadStatus)

    def push_update(
        self, header: UpdateHeader, payload: Payload, *, max_chunk_bytes: int
    ) -> Acknowledgement:
        """Sends what the server does not hold yet of an update.

        Asks first: an update that is committed already is acknowledged by that, one that was cut
        goes on from the last byte that is durable. To resume is to call again.

        Args:
            header: its start_offset is filled in here.
            payload: the bytes.
            max_chunk_bytes: most bytes in one message; Limits.chunk_bytes.

        Raises:
            FedLoraError: UNAVAILABLE and the like if the stream was cut; otherwise why the server
                does not take the update.
        """
        status = self.upload_status(header.session_token, header.idempotency_key)
        if status.state is UploadState.COMMITTED and status.acknowledgement is not None:
            return _checked(replace(status.acknowledgement, replayed=True), payload)
        start = status.durable_bytes if status.durable_bytes <= payload.total_bytes else 0
        messages = self._upload(
            replace(header, start_offset=start), payload, min(max_chunk_bytes, MAX_CHUNK_BYTES)
        )
        seconds = self._seconds_for(payload.total_bytes - start)
        response = self._call(self._connection.push_update, messages, seconds=seconds)
        return _checked(from_message(response, Acknowledgement), payload)

    def _seconds_for(self, num_bytes: int) -> float:
        """Deadline of a transfer: that of the slowest link the server puts up with."""
        return transfer_seconds(num_bytes, self._min_bytes_per_second)

    def _upload(
        self, header: UpdateHeader, payload: Payload, max_chunk_bytes: int
    ) -> Iterator[pb.PushUpdateRequest | bytes]:
        yield pb.PushUpdateRequest(header=to_message(header, pb.UpdateHeader))
        for offset, views in payload.views(header.start_offset, max_chunk_bytes):
            yield encode_chunk(offset, views)
            self._on_sent(sum(map(len, views)))
        yield encode_commit(payload.total_bytes, payload.digest)

    def _counted(self, messages: Iterator[M]) -> Iterator[M]:
        for message in messages:
            if isinstance(message, Chunk):
                self._on_received(len(message.data))
            yield message

    def _call(self, method: Method[M], request: object, *, seconds: float = CONTROL_SECONDS) -> M:
        return call(method, request, seconds=seconds, peer=self._address, guard=self._guard)


class _Connection:
    """A channel, and what is called over it."""

    def __init__(self, dialler: Dialler, address: str) -> None:
        self.stamp = dialler.stamp()
        self.channel = dialler.dial(address)
        self.stub = federation_pb2_grpc.FederationServiceStub(self.channel)
        self.push_update = push_update(self.channel)
        self.pull_adapter = pull_adapter(self.channel)


def _checked(acknowledgement: Acknowledgement, payload: Payload) -> Acknowledgement:
    """The acknowledgement, if it is of these bytes."""
    if (acknowledgement.total_bytes, acknowledgement.digest) != (
        payload.total_bytes,
        payload.digest,
    ):
        raise FedLoraError(
            Reason.DIGEST_MISMATCH,
            f"{payload.total_bytes} bytes with {DIGEST_NAME} {payload.digest.hex()} were sent, "
            f"{acknowledgement.total_bytes} with {acknowledgement.digest.hex()} acknowledged",
        )
    return acknowledgement
