"""The work of a task: initialize, train, evaluate.

Each moves the session from READY and back, and ends with the server's acknowledgement or with its
word that the task no longer counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from client_worker.asking import Asking, RefusedError
from client_worker.heartbeat import Heartbeats
from client_worker.membership import Assignment
from client_worker.outbox import Outbox, TrainedUpdate
from client_worker.ports import Federation, Trainer
from client_worker.progress import ProgressReporter
from client_worker.session import Event, Session
from client_worker.stop import StopRequest
from client_worker.training.loop import TaskAbandoned
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import (
    Acknowledgement,
    Evaluation,
    EvaluationScope,
    Progress,
    Registration,
    Task,
    UpdateHeader,
)
from fedlora.tensors.manifest import TensorManifest
from fedlora.tensors.safetensors_io import decode, encode

__all__ = ["LoadedTrainer", "TaskWork"]

log = structlog.get_logger(__name__)

_STALE = frozenset({Reason.WRONG_ROUND, Reason.WRONG_TASK, Reason.WRONG_PHASE})
"""the task was overtaken: drop what was made for it and ask for the next"""


@dataclass(slots=True)
class LoadedTrainer:
    """A trainer, what it was made for, and which adapter is in it."""

    trainer: Trainer
    assignment: Assignment
    manifest: TensorManifest
    """tensors of an adapter of this run at this worker's rank"""
    version: tuple[str, int] | None = None
    """run id and version of the adapter; None if it is freshly attached or trained"""
    pristine: bool = True
    """as attached: neither trained nor replaced"""


class TaskWork:
    """Does what a task asks for.

    Args:
        federation: the server.
        asking: the way to it.
        session: moved along.
        heartbeats: know whether the task in hand still counts.
        progress: told how far training has got.
        outbox: keeps an update until it is acknowledged.
        downloads: folder for adapters.
        stop: ends training early.
    """

    def __init__(
        self,
        *,
        federation: Federation,
        asking: Asking,
        session: Session,
        heartbeats: Heartbeats,
        progress: ProgressReporter,
        outbox: Outbox,
        downloads: Path,
        stop: StopRequest,
    ) -> None:
        self._federation = federation
        self._asking = asking
        self._session = session
        self._heartbeats = heartbeats
        self._progress = progress
        self._outbox = outbox
        self._downloads = downloads
        self._stop = stop

    def initialize(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Submits the adapter as freshly attached: it becomes version 0."""
        self._session.handle(Event.UPDATE_AT_HAND)
        update = TrainedUpdate(payload=encode(loaded.trainer.adapter()))
        self._submit(task, update, registration)

    def train(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Trains from the task's version and submits, or submits what a restart cut short."""
        update = self._outbox.find(task, loaded.manifest)
        if update is not None:
            log.info("update_found", bytes=update.payload.total_bytes)
            self._session.handle(Event.UPDATE_AT_HAND)
            self._submit(task, update, registration)
            return
        self._session.handle(Event.TRAIN_GIVEN)
        self._bring(task.adapter_version, loaded, registration)
        try:
            update = self._trained(task, loaded)
        except TaskAbandoned:
            self._stop.check()
            self._heartbeats.raise_if_fenced()
            self._session.handle(Event.DROPPED)
            log.info("abandoned")
            return
        self._outbox.keep(task, update)
        self._session.handle(Event.TRAINED)
        self._submit(task, update, registration)

    def evaluate(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Scores the task's version and reports it."""
        self._session.handle(Event.EVALUATE_GIVEN)
        self._bring(task.adapter_version, loaded, registration)
        with self._stop.window():
            scores = loaded.trainer.evaluate(
                EvaluationScope.GLOBAL, shard_index=task.shard_index, shard_count=task.shard_count
            )
        scores = tuple(_finite_scores(e) for e in scores)
        try:
            self._asking.ask(
                "reporting scores",
                lambda token: self._federation.report_evaluation(token, task.task_id, scores),
            )
        except RefusedError as refused:
            self._drop_if_stale(refused)
        else:
            self._session.handle(Event.REPORTED)
            log.info("evaluated", scores={e.split.value: dict(e.metrics) for e in scores})

    # --- steps ---------------------------------------------------------------------------

    def _bring(self, version: int, loaded: LoadedTrainer, registration: Registration) -> None:
        """Puts a version of the global adapter into the model, unless it is there already."""
        wanted = (registration.run_id, version)
        if loaded.version == wanted:
            return
        header, path = self._asking.ask(
            f"pulling adapter version {version}",
            lambda token: self._federation.pull_adapter(
                token, version, folder=self._downloads, expected_bytes=loaded.manifest.data_bytes
            ),
        )
        if difference := loaded.manifest.difference(header.manifest):
            raise FedLoraError(
                Reason.MANIFEST_MISMATCH,
                f"adapter version {version} does not fit the adapter attached here: {difference}",
                hint="Use the same versions of transformers and peft on all workers",
            )
        loaded.version, loaded.pristine = None, False
        loaded.trainer.load_adapter(decode(path, header.manifest))
        loaded.version = wanted
        log.info("adapter_loaded", version=version, bytes=header.total_bytes)

    def _trained(self, task: Task, loaded: LoadedTrainer) -> TrainedUpdate:
        """Trains, scores the result on this worker's held-out data, encodes it."""
        loaded.version, loaded.pristine = None, False
        outcome = loaded.trainer.train(
            round=task.round,
            seed=task.seed,
            on_progress=lambda step, steps, metrics: self._progress.offer(
                Progress(
                    task_id=task.task_id,
                    completed_steps=step,
                    total_steps=steps,
                    metrics=_finite(metrics),
                )
            ),
            should_abandon=lambda: self._stop.requested or self._heartbeats.abandoned,
        )
        metrics = _finite(outcome.metrics)
        log.info("trained", num_examples=outcome.num_examples, metrics=metrics)
        scores: tuple[Evaluation, ...] = ()
        if loaded.assignment[0].rounds.evaluate:
            with self._stop.window():
                scores = loaded.trainer.evaluate(EvaluationScope.LOCAL)
        return TrainedUpdate(
            payload=encode(loaded.trainer.adapter()),
            num_examples=outcome.num_examples,
            metrics=metrics,
            evaluations=tuple(_finite_scores(e) for e in scores),
        )

    def _submit(self, task: Task, update: TrainedUpdate, registration: Registration) -> None:
        """Sends an update until it is acknowledged, or refused as too late."""
        payload = update.payload

        def push(token: str) -> Acknowledgement:
            header = UpdateHeader(
                session_token=token,
                run_id=registration.run_id,
                task_id=task.task_id,
                round=task.round,
                base_version=task.adapter_version,
                # By content: the same bytes resume or are acknowledged again, others are new.
                idempotency_key=f"{task.task_id}.{payload.sha256.hex()[:32]}",
                total_bytes=payload.total_bytes,
                manifest=payload.manifest,
                num_examples=update.num_examples,
                metrics=update.metrics,
                evaluations=update.evaluations,
            )
            return self._federation.push_update(
                header, payload, max_chunk_bytes=registration.limits.max_chunk_bytes
            )

        began = time.monotonic()
        try:
            acknowledgement = self._asking.ask("submitting the update", push)
        except RefusedError as refused:
            self._drop_if_stale(refused)
        else:
            self._session.handle(Event.ACKNOWLEDGED)
            log.info(
                "update_committed",
                update_id=acknowledgement.update_id,
                bytes=acknowledgement.total_bytes,
                replayed=acknowledgement.replayed,
                seconds=round(time.monotonic() - began, 2),
            )
        self._outbox.clear()

    def _drop_if_stale(self, refused: RefusedError) -> None:
        if refused.error.reason not in _STALE:
            raise refused
        self._session.handle(Event.DROPPED)
        log.warning("dropped", reason=refused.error.reason.value, error=str(refused))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers; the server takes no others."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _finite_scores(scores: Evaluation) -> Evaluation:
    return Evaluation(
        scope=scores.scope,
        split=scores.split,
        num_examples=scores.num_examples,
        metrics=_finite(scores.metrics),
    )
