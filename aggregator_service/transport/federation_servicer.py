"""FederationService: what workers call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aggregator_service.transport.encoded_files import EncodedFiles
from aggregator_service.transport.errors import Context, answering, streaming
from aggregator_service.transport.open_streams import OpenStreams
from aggregator_service.uploads import Uploads
from aggregator_service.worker_calls import WorkerCalls
from fedlora.adapters.spec import AdapterLayout
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.runs.tasks import Capabilities, Directive, Evaluation, Progress, UpdateHeader
from fedlora.wire.convert import from_message, to_message
from fedlora.wire.payload import encode_commit
from fedlora.wire.stream import Chunk, Commit

__all__ = ["FederationServicer"]

_RESPONSES = {
    Directive.CONTINUE: pb.HeartbeatResponse(directive=pb.DIRECTIVE_CONTINUE),
    Directive.ABANDON_TASK: pb.HeartbeatResponse(directive=pb.DIRECTIVE_ABANDON_TASK),
}


class FederationServicer(federation_pb2_grpc.FederationServiceServicer):
    """Decodes, calls what workers may do, encodes."""

    def __init__(
        self, workers: WorkerCalls, uploads: Uploads, files: EncodedFiles, streams: OpenStreams
    ) -> None:
        self._workers = workers
        self._uploads = uploads
        self._files = files
        self._streams = streams

    @answering
    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        registration = await self._workers.register(
            name=request.worker_name,
            run_name=request.run_name,
            instance_id=request.instance_id,
            capabilities=from_message(request.capabilities, Capabilities),
        )
        return to_message(registration, pb.RegisterResponse)

    @answering
    async def ConfirmAdapter(
        self, request: pb.ConfirmAdapterRequest, context: Context
    ) -> pb.ConfirmAdapterResponse:
        layout = from_message(request.layout, AdapterLayout)
        fingerprint = await self._workers.confirm_adapter(request.session_token, layout)
        return pb.ConfirmAdapterResponse(base_fingerprint=fingerprint)

    @answering
    async def AwaitTask(
        self, request: pb.AwaitTaskRequest, context: Context
    ) -> pb.AwaitTaskResponse:
        task = await self._workers.await_task(request.session_token, request.max_wait_seconds)
        return pb.AwaitTaskResponse(task=to_message(task, pb.Task))

    @streaming
    async def PullAdapter(
        self, request: pb.PullAdapterRequest, context: Context
    ) -> AsyncIterator[Any]:
        _check_deadline(context)
        async with self._workers.adapter(
            request.session_token,
            request.adapter_version,
            request.start_offset,
            request.held_version if request.HasField("held_version") else None,
        ) as (header, path):
            yield pb.PullAdapterResponse(header=to_message(header, pb.AdapterHeader))
            async for message in self._files.messages(
                path, start_offset=request.start_offset, total_bytes=header.total_bytes
            ):
                yield message
            yield encode_commit(header.total_bytes, header.digest)

    @answering
    async def PushUpdate(
        self,
        request: AsyncIterator[Chunk | Commit | pb.PushUpdateRequest],
        context: Context,
    ) -> pb.PushUpdateResponse:
        first = await self._uploads.first(aiter(request))
        if not isinstance(first, pb.PushUpdateRequest) or not first.HasField("header"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"the first message of an update is its header, got {_kind(first)}",
            )
        header = from_message(first.header, UpdateHeader)
        acknowledgement = await self._uploads.receive(header, _payload(request))
        return to_message(acknowledgement, pb.PushUpdateResponse)

    @answering
    async def GetUploadStatus(
        self, request: pb.GetUploadStatusRequest, context: Context
    ) -> pb.GetUploadStatusResponse:
        status = await self._uploads.status(request.session_token, request.idempotency_key)
        return to_message(status, pb.GetUploadStatusResponse)

    @answering
    async def ReportEvaluation(
        self, request: pb.ReportEvaluationRequest, context: Context
    ) -> pb.ReportEvaluationResponse:
        evaluations = tuple(from_message(e, Evaluation) for e in request.evaluations)
        await self._workers.report_evaluation(request.session_token, request.task_id, evaluations)
        return pb.ReportEvaluationResponse()

    @answering
    async def ReportMetrics(
        self, request: pb.ReportMetricsRequest, context: Context
    ) -> pb.ReportMetricsResponse:
        self._workers.report_progress(
            request.session_token, from_message(request.progress, Progress)
        )
        return pb.ReportMetricsResponse()

    @streaming
    async def KeepAlive(
        self, request: AsyncIterator[pb.HeartbeatRequest], context: Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        async with self._streams.place() as stream:
            async for beat in request:
                stream.heard()
                answer = self._answered(beat)
                if not beat.unanswered:
                    yield answer

    @answering
    async def Heartbeat(
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatResponse:
        return self._answered(request)

    def _answered(self, beat: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        return _RESPONSES[self._workers.heartbeat(beat.session_token, beat.task_id)]

    @answering
    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:
        await self._workers.leave(request.session_token, request.reason)
        return pb.LeaveResponse()


def _check_deadline(context: Context) -> None:
    """A stream whose peer reads nothing is ended by its deadline and by nothing else (measured)."""
    if context.time_remaining() is None:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            "a download was expected to have a deadline, got none",
            hint="Set the call's timeout: the server keeps it too, should the reader stall",
        )


async def _payload(
    messages: AsyncIterator[Chunk | Commit | pb.PushUpdateRequest],
) -> AsyncIterator[Chunk | Commit]:
    async for message in messages:
        if isinstance(message, pb.PushUpdateRequest):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"after the header come chunks and a commit, got {_kind(message)}",
            )
        yield message
        # Not kept while the next one is waited for, which may be long.
        del message


def _kind(message: Chunk | Commit | pb.PushUpdateRequest | None) -> str:
    if message is None:
        return "an empty stream"
    if isinstance(message, pb.PushUpdateRequest):
        return message.WhichOneof("message") or "an empty message"
    return type(message).__name__.lower()
