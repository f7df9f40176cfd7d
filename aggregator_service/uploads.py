"""One upload, from its header to its acknowledgement.

    header -> a place -> (known key? replay) -> checks -> chunks into a partial file -> commit
    message -> size and digest right, file durable and named -> run's state durable
    -> acknowledgement

An upload is an update only after the last of these. Whatever ends it earlier leaves the partial
file, to be resumed, or (when the bytes themselves are wrong) nothing at all. The end of the stream
proves nothing: a client killed in mid-upload ends it like one that is done (measured, grpc.aio).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from aggregator_service.admission import Admission
from aggregator_service.aggregation.coded_update import check_codes
from aggregator_service.aggregation.selected_components import check_selections
from aggregator_service.coordinator import Coordinator
from aggregator_service.disk_watch import DISK_REFUSES
from aggregator_service.failpoints import Failpoint, reach
from aggregator_service.pace import Pace, PaceRules
from aggregator_service.replay import acknowledge_again, replay
from aggregator_service.reported_numbers import check_metrics, check_scores
from aggregator_service.rounds.assignment import check_update
from aggregator_service.rounds.events import UpdateCommitted
from aggregator_service.rounds.manifests import plain_manifest
from aggregator_service.rounds.state import RunState, UpdateRecord
from aggregator_service.run_actor import RunActor
from aggregator_service.store.upload_writer import UploadWriter
from aggregator_service.upload_story import CUT, UploadStory
from aggregator_service.worker_calls import WorkerCalls
from aggregator_service.write_behind import WriteBehind
from fedlora.adapters.names import Part, parse_key, split_extra
from fedlora.codecs.updates import create_codec
from fedlora.digests import DIGEST_BYTES, DIGEST_NAME
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.plan import plan_for
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Acknowledgement, UpdateHeader, UploadState, UploadStatus
from fedlora.wire.stream import Chunk, Commit

__all__ = ["Uploads"]

T = TypeVar("T")

_RESUMABLE = CUT | DISK_REFUSES

_ANSWER_SECONDS = 0.02


class Uploads:
    """Receives updates.

    Args:
        coordinator: the runs.
        workers: whose sessions they are, and what they are allowed.
        admission: gives uploads their turn.
        pace: what each of them is held to.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        workers: WorkerCalls,
        admission: Admission,
        pace: PaceRules,
    ) -> None:
        self._coordinator = coordinator
        self._workers = workers
        self._admission = admission
        self._pace = pace
        self._last_keys: dict[tuple[str, str], str] = {}
        """by run and worker: of its last upload, whose bytes may still be here"""

    async def first(self, messages: AsyncIterator[T]) -> T | None:
        """The first message of a stream, None if there is none.

        Raises:
            FedLoraError: UPLOAD_STALLED if it does not come in time.
        """
        return await Pace(self._pace, 0).wait(anext(messages, None))

    async def receive(
        self, header: UpdateHeader, messages: AsyncIterator[Chunk | Commit]
    ) -> Acknowledgement:
        """Receives one upload and makes it an update.

        Raises:
            FedLoraError: for a header that is not what the worker was asked for, bytes that are
                not what the header says, or a stream that ends too early.
        """
        actor, worker = self._workers.session(header.session_token)
        self._check_header(header, actor.state.spec)
        reach(Failpoint.HEADER_READ)
        left = max(0, header.total_bytes - header.start_offset)
        pace = Pace(self._pace, left, on_moved=self._coordinator.telemetry.received)
        told = UploadStory(self._coordinator.telemetry, pace)
        with told.until_its_end():
            async with self._admission.place((actor.state.run_id, worker), left, pace):
                told.has_place()
                followed = pace.follow(messages, _payload_bytes)
                acknowledgement = await self._receive(actor, worker, header, followed)
            told.acknowledged(replayed=acknowledgement.replayed)
        return acknowledgement

    async def _receive(
        self,
        actor: RunActor,
        worker: str,
        header: UpdateHeader,
        messages: AsyncIterator[Chunk | Commit],
    ) -> Acknowledgement:
        try:
            rank = check_update(actor.state, worker, header, actor.now())
            writer = await self._open(actor, worker, header)
        except FedLoraError:
            # A key that counts has no task any more, or its other stream holds the file.
            if known := await self._known(actor, header.idempotency_key):
                return await replay(known, self._file_of(known), worker, header, messages)
            raise
        try:
            # From here on nobody else writes under the key; until here somebody may have, and it
            # may be one of an earlier round.
            if known := await self._known(actor, header.idempotency_key):
                await asyncio.to_thread(writer.discard)
                return await replay(known, self._file_of(known), worker, header, messages)
            commit = await self._receive_chunks(writer, header, messages)
            record = UpdateRecord(
                update_id=secrets.token_hex(16),
                round=header.round,
                worker=worker,
                idempotency_key=header.idempotency_key,
                digest=commit.digest.hex(),
                total_bytes=commit.total_bytes,
                base_version=header.base_version,
                rank=rank,
                given_rank=actor.state.workers[worker].rank,
                is_refinement=actor.state.phase is RunPhase.REFINING,
                num_examples=header.num_examples,
                metrics=dict(header.metrics),
                evaluations=header.evaluations,
            )
            blobs = self._coordinator.blobs
            # From its name in the file system to its name in the database it is nobody's.
            blobs.pin(record.digest)
            await actor.apply(
                UpdateCommitted(record),
                before_commit=lambda state: self._finish(writer, commit, state, header, record),
                afterwards=lambda: blobs.release(record.digest),
            )
        except FedLoraError as error:
            self._coordinator.disk.noticed(error)
            end = writer.suspend if error.reason in _RESUMABLE else writer.discard
            await asyncio.shield(asyncio.to_thread(end))
            raise
        except BaseException:
            # Cancelled: the client or the server goes away. What came stays.
            await asyncio.shield(asyncio.to_thread(writer.suspend))
            raise
        # Once the answer is out: a thread that computes ahead would take the interpreter from it.
        loop = asyncio.get_running_loop()
        loop.call_later(_ANSWER_SECONDS, self._coordinator.prepare, actor)
        reach(Failpoint.BEFORE_ACKNOWLEDGEMENT)
        return Acknowledgement(
            update_id=record.update_id, total_bytes=record.total_bytes, digest=commit.digest
        )

    async def status(self, token: str, idempotency_key: str) -> UploadStatus:
        """How much of an upload is here."""
        actor, worker = self._workers.session(token)
        run_id = actor.state.run_id
        known = await self._known(actor, idempotency_key)
        if known is not None and known.worker == worker:
            return UploadStatus(
                state=UploadState.COMMITTED,
                durable_bytes=known.total_bytes,
                acknowledgement=acknowledge_again(known),
            )
        key = _upload_key(run_id, worker, idempotency_key)
        durable = await asyncio.to_thread(self._coordinator.blobs.durable_bytes, key)
        state = UploadState.PARTIAL if durable else UploadState.UNKNOWN
        return UploadStatus(state=state, durable_bytes=durable)

    # --- steps ---------------------------------------------------------------------------

    async def _known(self, actor: RunActor, key: str) -> UpdateRecord | None:
        run_id = actor.state.run_id
        return await self._coordinator.store.call(lambda s: s.update_by_key(run_id, key))

    def _file_of(self, known: UpdateRecord) -> Path:
        return self._coordinator.blobs.path(known.digest)

    def _check_header(self, header: UpdateHeader, run: RunSpec) -> None:
        limits = self._workers.limits
        if not 1 <= len(header.idempotency_key) <= 512:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"idempotency_key must have 1 to 512 characters, got {len(header.idempotency_key)}",
            )
        if not 0 < header.total_bytes <= limits.max_update_bytes:
            raise FedLoraError(
                Reason.TOO_LARGE,
                f"an update may have 1 to {limits.max_update_bytes} bytes, "
                f"{header.total_bytes} are declared",
                hint="Raise server.max_update_bytes",
            )
        check_metrics(header.metrics)
        check_scores(header.evaluations, run)

    async def _open(self, actor: RunActor, worker: str, header: UpdateHeader) -> UploadWriter:
        key = _upload_key(actor.state.run_id, worker, header.idempotency_key)
        owner = (actor.state.run_id, worker)
        before, self._last_keys[owner] = self._last_keys.get(owner, key), key
        # `check_update` has found it to be what was asked for.
        manifest = header.manifest

        def open_writer() -> UploadWriter:
            blobs = self._coordinator.blobs
            if before != key:
                # A worker that begins another goes on with none: its keys must not fill the disk.
                blobs.forget_upload(before)
            writer = blobs.open_upload(key, total_bytes=header.total_bytes, manifest=manifest)
            if header.start_offset == 0 and writer.offset > 0:
                # A worker that does not ask how far it got starts over.
                writer.discard()
                writer = blobs.open_upload(key, total_bytes=header.total_bytes, manifest=manifest)
            return writer

        opening = asyncio.ensure_future(asyncio.to_thread(open_writer))
        try:
            writer = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on: a writer that nobody ends would keep its worker out for good.
            opening.add_done_callback(_suspend_unused)
            raise
        if header.start_offset != writer.offset:
            here = writer.offset
            await asyncio.shield(asyncio.to_thread(writer.suspend))
            raise FedLoraError(
                Reason.OFFSET_MISMATCH,
                f"the upload goes on at byte {here}, this stream begins at {header.start_offset}",
                hint="Ask GetUploadStatus where to go on",
            )
        return writer

    async def _receive_chunks(
        self, writer: UploadWriter, header: UpdateHeader, messages: AsyncIterator[Chunk | Commit]
    ) -> Commit:
        limit = self._workers.limits.max_chunk_bytes
        async with WriteBehind(writer) as behind:
            while (message := await behind.next_of(messages)) is not None:
                if isinstance(message, Commit):
                    _check_commit(message, header)
                    await behind.finish()
                    return message
                if len(message.data) > limit:
                    raise FedLoraError(
                        Reason.TOO_LARGE,
                        f"a chunk may have {limit} bytes, got {len(message.data)}",
                    )
                await behind.write(message)
                # Not kept while the next one is waited for, which may be long.
                del message
        raise FedLoraError(
            Reason.UPLOAD_INCOMPLETE,
            f"the stream ended after {writer.offset} of {header.total_bytes} bytes, without a "
            f"commit",
            hint="Resume from GetUploadStatus's offset",
        )

    @staticmethod
    def _finish(
        writer: UploadWriter,
        commit: Commit,
        state: RunState,
        header: UpdateHeader,
        record: UpdateRecord,
    ) -> None:
        inspect = _inspection(state, header, record)
        writer.commit(commit.total_bytes, commit.digest, inspect=inspect)


def _payload_bytes(message: Chunk | Commit) -> int:
    return len(message.data) if isinstance(message, Chunk) else 0


def _check_commit(commit: Commit, header: UpdateHeader) -> None:
    if commit.total_bytes != header.total_bytes or len(commit.digest) != DIGEST_BYTES:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"the commit names {commit.total_bytes} bytes and a digest of {len(commit.digest)}, "
            f"the header {header.total_bytes} bytes; a {DIGEST_NAME} has {DIGEST_BYTES}",
        )


def _inspection(
    state: RunState, header: UpdateHeader, record: UpdateRecord
) -> Callable[[Path], None] | None:
    """The last look at an update's file, for what a manifest does not tell; None for none."""
    if codec := record.codec(state.spec):
        plan = plan_for(state.plans, header.round)
        return functools.partial(
            check_codes,
            codec=create_codec(codec),
            plain=plain_manifest(state, plan, record.given_rank),
            owner=record.worker,
        )
    own = [info.name for info in header.manifest.tensors if not split_extra(info.name)[0]]
    if any(parse_key(key).part is Part.SELECTED for key in own):
        return functools.partial(check_selections, rank=record.given_rank, owner=record.worker)
    return None


def _suspend_unused(opening: asyncio.Future[UploadWriter]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().suspend()


def _upload_key(run_id: str, worker: str, idempotency_key: str) -> str:
    """The name under which an upload's bytes are kept; free of anything a worker wrote."""
    text = f"{run_id}\x1f{worker}\x1f{idempotency_key}"
    return hashlib.sha256(text.encode()).hexdigest()
