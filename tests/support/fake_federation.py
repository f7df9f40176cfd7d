"""A small FederationService on a real loopback socket, with faults that a test writes down.

It hands out a plan of tasks one by one, keeps uploads in memory, and records every call. It knows
nothing of rounds or aggregation; what it says over the wire is the contract's.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self

import grpc

from fedlora.adapters.spec import AdapterLayout, AdapterSpec, BaseModel, TaskType
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.rpc.channel import SERVER_OPTIONS
from fedlora.rpc.status import to_status
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import (
    Acknowledgement,
    AdapterHeader,
    DataSlot,
    Directive,
    Limits,
    Registration,
    Task,
    TaskKind,
    UpdateHeader,
    UploadState,
    UploadStatus,
)
from fedlora.tensors.manifest import TensorManifest
from fedlora.wire.convert import from_message, to_message

WAIT_SECONDS = 90.0
"""longest a test waits for a condition before it fails"""


def run_spec(name: str = "test", *, evaluate: bool = True, r: int = 4) -> RunSpec:
    """A small run."""
    return RunSpec(
        name=name,
        adapter=AdapterSpec(
            base_model=BaseModel(model_id="tiny"),
            task_type=TaskType.SEQUENCE_CLASSIFICATION,
            r=r,
            target_modules=("query",),
            labels=("a", "b"),
        ),
        rounds=RoundRules(num_rounds=2, evaluate=evaluate),
        seed=3,
    )


def train_task(round: int = 1, *, version: int = 0, run_id: str = "run-1") -> Task:
    """The task to train in a round from a version."""
    return Task(
        task_id=f"{run_id}/{round}/train/w",
        kind=TaskKind.TRAIN,
        round=round,
        adapter_version=version,
        seed=100 + round,
        remaining_seconds=60.0,
    )


def evaluate_task(round: int = 1, *, version: int = 1) -> Task:
    """The task to score a version."""
    return Task(
        task_id=f"run-1/{round}/evaluate/w",
        kind=TaskKind.EVALUATE,
        round=round,
        adapter_version=version,
        shard_index=1,
        shard_count=2,
    )


INITIALIZE = Task(task_id="run-1/0/initialize/w", kind=TaskKind.INITIALIZE)


@dataclass
class Fault:
    """What goes wrong with one call."""

    error: FedLoraError | grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    """raised as ours, or as a bare status such as gRPC's own"""
    after_bytes: int = 0
    """payload bytes that still pass, for streams"""
    after_effect: bool = False
    """the call has its effect; only the answer is lost"""
    silent_end: bool = False
    """a download ends like a whole one, without its commit"""
    flip_byte: bool = False
    """a download's payload is damaged on its way"""


@dataclass
class Received:
    """One stream of an upload."""

    header: UpdateHeader
    chunks: list[tuple[int, int]] = field(default_factory=list)
    """offset and length of each chunk that arrived"""
    seconds_left: float = 0.0
    """until its deadline, when it began"""


class FakeFederation(federation_pb2_grpc.FederationServiceServicer):
    """A context manager; `address` is where it serves.

    Args:
        plan: tasks, handed out in order; each until it is done. After the last comes STOP, or
            with `keep_waiting` a poll that ends only with the server.
        run: the run workers join.
        adapters: payload and manifest by version.
    """

    def __init__(
        self,
        plan: Sequence[Task] = (),
        *,
        run: RunSpec | None = None,
        adapters: dict[int, tuple[bytes, TensorManifest]] | None = None,
        limits: Limits | None = None,
        partition: PartitionSpec | None = None,
        keep_waiting: bool = False,
    ) -> None:
        self.run = run or run_spec()
        self.run_id = "run-1"
        self.rank = self.run.adapter.r
        self.slot = DataSlot(index=2, partition=partition) if partition else None
        self.limits = limits or Limits(heartbeat_interval_seconds=0.02, max_chunk_bytes=128)
        self.plan = deque(plan)
        self.keep_waiting = keep_waiting
        self.adapters = adapters or {}
        self.changes: dict[tuple[int, int], tuple[bytes, TensorManifest]] = {}
        """what a worker that holds the first of two versions is sent of the second"""
        self.abandon: set[str] = set()
        self.calls: list[tuple[str, Any]] = []
        """method and request; KeepAlive is here with each beat"""
        self.num_keep_alives = 0
        """streams of beats"""
        self.num_finished = 0
        """of these, that their clients have ended in good order"""
        self.streams: list[Received] = []
        self.updates: dict[str, tuple[UpdateHeader, bytes, Acknowledgement]] = {}
        self.layouts: list[AdapterLayout] = []
        self.scores: list[pb.ReportEvaluationRequest] = []
        self._partial: dict[str, bytearray] = {}
        self._tokens: dict[str, str] = {}
        self._fenced: set[str] = set()
        self._faults: dict[str, deque[Fault]] = {}
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self._port = 0

    # --- what tests use ------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serves, after a stop at the same port."""
        self._server = grpc.server(ThreadPoolExecutor(max_workers=16), options=SERVER_OPTIONS)
        federation_pb2_grpc.add_FederationServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        """Goes away at once; what it knows stays."""
        server, self._server = self._server, None
        with self._changed:
            self._changed.notify_all()
        if server is not None:
            server.stop(0).wait(WAIT_SECONDS)

    def fail(self, method: str, *faults: Fault) -> None:
        """The next calls of a method go wrong, one fault each."""
        self._faults.setdefault(method, deque()).extend(faults)

    def forget_sessions(self) -> None:
        """Like a server whose state was lost."""
        with self._changed:
            self._tokens.clear()

    def fence(self) -> None:
        """Like a newer process that registers under the worker's name."""
        with self._changed:
            self._fenced |= set(self._tokens)
            self._tokens.clear()
            self._changed.notify_all()

    def count(self, method: str) -> int:
        """Calls of a method so far, those that failed included."""
        return sum(name == method for name, _ in self.calls)

    def requests(self, method: str) -> list[Any]:
        """The requests of a method so far."""
        return [request for name, request in self.calls if name == method]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns once the condition holds; it is looked at after every call."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_SECONDS), self.calls[-5:]

    # --- the service ---------------------------------------------------------------------

    def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        def effect() -> pb.RegisterResponse:
            token = f"token-{len(self.calls)}"
            replaced = any(i != request.instance_id for i in self._tokens.values())
            self._tokens = {token: request.instance_id}
            registration = Registration(
                session_token=token,
                run_id=self.run_id,
                run=self.run,
                rank=min(self.rank, request.capabilities.max_rank or self.rank),
                limits=self.limits,
                data_slot=self.slot,
                replaced_session=replaced,
            )
            return to_message(registration, pb.RegisterResponse)

        return self._answer("Register", request, context, effect, session=False)

    def ConfirmAdapter(self, request: pb.ConfirmAdapterRequest, context: Any) -> Any:
        def effect() -> pb.ConfirmAdapterResponse:
            layout = from_message(request.layout, AdapterLayout)
            self.layouts.append(layout)
            return pb.ConfirmAdapterResponse(base_fingerprint=layout.base_fingerprint)

        return self._answer("ConfirmAdapter", request, context, effect)

    def AwaitTask(self, request: pb.AwaitTaskRequest, context: Any) -> Any:
        def effect() -> pb.AwaitTaskResponse:
            self._changed.wait_for(
                lambda: (
                    self._server is None
                    or bool(self.plan)
                    or not self.keep_waiting
                    or request.session_token not in self._tokens
                ),
                request.max_wait_seconds,
            )
            self._check_session(request.session_token)
            task = (
                self.plan[0] if self.plan else Task(task_id="", kind=TaskKind.STOP, reason="over")
            )
            if task.kind is TaskKind.WAIT:
                self.plan.popleft()
            return pb.AwaitTaskResponse(task=to_message(task, pb.Task))

        return self._answer("AwaitTask", request, context, effect)

    def PullAdapter(
        self, request: pb.PullAdapterRequest, context: Any
    ) -> Iterator[pb.PullAdapterResponse]:
        fault = self._begin("PullAdapter", request)
        self._refuse(fault, context, if_=lambda f: not (f.after_bytes or f.flip_byte))
        over = request.held_version if request.HasField("held_version") else None
        change = None if over is None else self.changes.get((over, request.adapter_version))
        data, manifest = change or self.adapters[request.adapter_version]
        header = AdapterHeader(
            run_id=self.run_id,
            adapter_version=request.adapter_version,
            round=request.adapter_version,
            rank=self.rank,
            total_bytes=len(data),
            digest=new_digest(data).digest(),
            manifest=manifest,
            held_version=over if change else None,
        )
        yield pb.PullAdapterResponse(header=to_message(header, pb.AdapterHeader))
        if fault and fault.flip_byte:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if request.start_offset > len(data):
            self._abort(context, FedLoraError(Reason.OFFSET_MISMATCH, "beyond the end"))
        sent, step = 0, self.limits.max_chunk_bytes
        for offset in range(request.start_offset, len(data), step):
            piece = data[offset : offset + step]
            if fault and fault.after_bytes and sent + len(piece) > fault.after_bytes:
                if fault.silent_end:
                    return
                self._refuse(fault, context)
            message = pb.PullAdapterResponse()
            message.chunk.offset, message.chunk.data = offset, piece
            sent += len(piece)
            yield message
        end = pb.PullAdapterResponse()
        end.commit.total_bytes, end.commit.digest = len(data), new_digest(data).digest()
        yield end

    def PushUpdate(self, messages: Iterator[pb.PushUpdateRequest], context: Any) -> Any:
        first = next(messages)
        header = from_message(first.header, UpdateHeader)
        fault = self._begin("PushUpdate", header)
        self._refuse(fault, context, if_=lambda f: not (f.after_bytes or f.after_effect))
        stream = Received(header, seconds_left=context.time_remaining())
        with self._changed:
            self.streams.append(stream)
        try:
            self._check_session(header.session_token)
            acknowledgement = self._receive(header, messages, stream, fault, context)
        except FedLoraError as error:
            self._abort(context, error)
        if fault and fault.after_effect:
            self._refuse(fault, context)
        return to_message(acknowledgement, pb.PushUpdateResponse)

    def _receive(
        self,
        header: UpdateHeader,
        messages: Iterator[pb.PushUpdateRequest],
        stream: Received,
        fault: Fault | None,
        context: Any,
    ) -> Acknowledgement:
        key = header.idempotency_key
        if key in self.updates:
            return replace(self.updates[key][2], replayed=True)
        kept = self._partial.setdefault(key, bytearray())
        if header.start_offset == 0:
            kept.clear()
        if header.start_offset != len(kept):
            raise FedLoraError(Reason.OFFSET_MISMATCH, f"{len(kept)} bytes are here")
        for message in messages:
            if message.WhichOneof("message") == "commit":
                break
            data = message.chunk.data
            if message.chunk.offset != len(kept):
                raise FedLoraError(Reason.OFFSET_MISMATCH, f"{len(kept)} bytes are here")
            if fault and fault.after_bytes and len(kept) + len(data) > fault.after_bytes:
                self._refuse(fault, context)
            kept.extend(data)
            with self._changed:
                stream.chunks.append((message.chunk.offset, len(data)))
                self._changed.notify_all()
        else:
            raise FedLoraError(Reason.UPLOAD_INCOMPLETE, f"{len(kept)} bytes came, no commit")
        whole = bytes(kept)
        if new_digest(whole).digest() != message.commit.digest:
            kept.clear()
            raise FedLoraError(Reason.DIGEST_MISMATCH, "other bytes came")
        acknowledgement = Acknowledgement(
            update_id=f"update-{len(self.updates)}",
            total_bytes=len(whole),
            digest=message.commit.digest,
        )
        with self._changed:
            self.updates[key] = (header, whole, acknowledgement)
            self._done(header.task_id)
            self._changed.notify_all()
        return acknowledgement

    def GetUploadStatus(self, request: pb.GetUploadStatusRequest, context: Any) -> Any:
        def effect() -> pb.GetUploadStatusResponse:
            key = request.idempotency_key
            if key in self.updates:
                ack = self.updates[key][2]
                status = UploadStatus(
                    state=UploadState.COMMITTED,
                    durable_bytes=ack.total_bytes,
                    acknowledgement=replace(ack, replayed=True),
                )
            else:
                durable = len(self._partial.get(key, b""))
                state = UploadState.PARTIAL if durable else UploadState.UNKNOWN
                status = UploadStatus(state=state, durable_bytes=durable)
            return to_message(status, pb.GetUploadStatusResponse)

        return self._answer("GetUploadStatus", request, context, effect)

    def ReportEvaluation(self, request: pb.ReportEvaluationRequest, context: Any) -> Any:
        def effect() -> pb.ReportEvaluationResponse:
            self.scores.append(request)
            self._done(request.task_id)
            return pb.ReportEvaluationResponse()

        return self._answer("ReportEvaluation", request, context, effect)

    def ReportMetrics(self, request: pb.ReportMetricsRequest, context: Any) -> Any:
        return self._answer("ReportMetrics", request, context, pb.ReportMetricsResponse)

    def KeepAlive(
        self, beats: Iterator[pb.HeartbeatRequest], context: Any
    ) -> Iterator[pb.HeartbeatResponse]:
        def answer(beat: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
            abandon = beat.task_id in self.abandon
            directive = Directive.ABANDON_TASK if abandon else Directive.CONTINUE
            return pb.HeartbeatResponse(
                directive=pb.Directive.Value(f"DIRECTIVE_{directive.value.upper()}")
            )

        with self._changed:
            self.num_keep_alives += 1
        for beat in beats:
            answered = self._answer("KeepAlive", beat, context, functools.partial(answer, beat))
            if not beat.unanswered:
                yield answered
        with self._changed:
            self.num_finished += context.is_active()
            self._changed.notify_all()

    def Leave(self, request: pb.LeaveRequest, context: Any) -> Any:
        return self._answer("Leave", request, context, pb.LeaveResponse)

    # --- inside --------------------------------------------------------------------------

    def drop_task(self) -> None:
        """The task at hand no longer counts; the next one is due."""
        with self._changed:
            self.plan.popleft()
            self._changed.notify_all()

    def _done(self, task_id: str) -> None:
        if self.plan and self.plan[0].task_id == task_id:
            self.plan.popleft()

    def _begin(self, method: str, request: Any) -> Fault | None:
        with self._changed:
            self.calls.append((method, request))
            self._changed.notify_all()
            faults = self._faults.get(method)
            return faults.popleft() if faults else None

    def _answer(
        self,
        method: str,
        request: Any,
        context: Any,
        effect: Callable[[], Any],
        *,
        session: bool = True,
    ) -> Any:
        fault = self._begin(method, request)
        self._refuse(fault, context, if_=lambda f: not f.after_effect)
        try:
            with self._changed:
                if session:
                    self._check_session(request.session_token)
                response = effect()
                self._changed.notify_all()
        except FedLoraError as error:
            self._abort(context, error)
        self._refuse(fault, context)
        return response

    def _check_session(self, token: str) -> None:
        if token in self._fenced:
            raise FedLoraError(Reason.SESSION_FENCED, "a newer process has registered")
        if token not in self._tokens:
            raise FedLoraError(Reason.UNKNOWN_SESSION, "no such session", hint="Register again")

    def _refuse(
        self, fault: Fault | None, context: Any, *, if_: Callable[[Fault], bool] = lambda _: True
    ) -> None:
        if fault is None or not if_(fault):
            return
        if isinstance(fault.error, FedLoraError):
            self._abort(context, fault.error)
        context.abort(fault.error, "a fault of the test")

    @staticmethod
    def _abort(context: Any, error: FedLoraError) -> None:
        context.abort_with_status(to_status(error))
