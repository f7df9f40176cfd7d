"""The work of a task: initialize, train, evaluate.

Each moves the session from READY and back, and ends with the server's acknowledgement or with its
word that the task no longer counts. What is trained, sent and kept is the task's plan's to say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import structlog
from torch import Tensor

from client_worker.asking import Asking, RefusedError
from client_worker.coding import UpdateCoder
from client_worker.heartbeat import Heartbeats
from client_worker.loading import AdapterLoader, LoadedTrainer
from client_worker.outbox import Outbox, TrainedUpdate, idempotency_key
from client_worker.own_adapter import OwnAdapter
from client_worker.own_training import OwnTraining
from client_worker.parts import personal_manifest, pick, private_manifest, sent_manifest
from client_worker.plugin_memory import PluginMemory
from client_worker.ports import Federation
from client_worker.private_parts import PrivateParts
from client_worker.progress import ProgressReporter
from client_worker.session import Event, Session
from client_worker.stop import StopRequest
from client_worker.telemetry import RoundTrained, StepDone, Telemetry
from client_worker.training.loop import TaskAbandoned
from client_worker.training.round_work import OnProgress, RoundWork
from fedlora.errors import Reason
from fedlora.runs.tasks import (
    Acknowledgement,
    Evaluation,
    EvaluationScope,
    Progress,
    Registration,
    Task,
    TaskKind,
    UpdateHeader,
    UploadState,
)
from fedlora.tensors.safetensors_io import encode

__all__ = ["TaskWork"]

log = structlog.get_logger(__name__)

_STALE = frozenset({Reason.WRONG_ROUND, Reason.WRONG_TASK, Reason.WRONG_PHASE})
"""the task was overtaken: drop what was made for it and ask for the next"""


class TaskWork:
    """Does what a task asks for.

    Args:
        federation: the server.
        asking: the way to it.
        session: moved along.
        heartbeats: know whether the task in hand still counts.
        progress: told how far training has got.
        loader: puts into the model what a task begins from.
        private: keeps what is trained with a round and never sent.
        personal: keeps what makes the published adapter this worker's own.
        own: keeps the adapter that is this worker's own, for whoever wants to use it.
        memory: keeps what the run's plug-ins remember.
        coder: writes what is sent.
        outbox: keeps an update until it is acknowledged.
        stop: ends training early.
        telemetry: told how training goes.
    """

    def __init__(
        self,
        *,
        federation: Federation,
        asking: Asking,
        session: Session,
        heartbeats: Heartbeats,
        progress: ProgressReporter,
        loader: AdapterLoader,
        private: PrivateParts,
        personal: PrivateParts,
        own: OwnAdapter,
        memory: PluginMemory,
        coder: UpdateCoder,
        outbox: Outbox,
        stop: StopRequest,
        telemetry: Telemetry,
    ) -> None:
        self._federation = federation
        self._asking = asking
        self._session = session
        self._heartbeats = heartbeats
        self._progress = progress
        self._loader = loader
        self._private = private
        self._personal = personal
        self._own = own
        self._memory = memory
        self._own_training = OwnTraining(memory, stop)
        self._coder = coder
        self._outbox = outbox
        self._stop = stop
        self._telemetry = telemetry

    def initialize(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Submits the adapter as freshly attached: it becomes version 0."""
        self._session.handle(Event.UPDATE_AT_HAND)
        loaded.trainer.begin(task.plan)
        first = pick(loaded.trainer.adapter(), sent_manifest(loaded.manifest, task.plan))
        update = TrainedUpdate(payload=encode(first))
        self._submit(task, update, loaded, registration)

    def train(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Trains from the task's version and submits, or submits what a restart cut short."""
        update = self._outbox.find(task)
        if update is not None:
            log.info("update_found", bytes=update.payload.total_bytes)
            self._session.handle(Event.UPDATE_AT_HAND)
            self._submit(task, update, loaded, registration)
            return
        self._session.handle(Event.TRAIN_GIVEN)
        self._settle(task, loaded, registration)
        self._loader.bring(task, loaded, registration)
        try:
            update, kept, owed = self._trained(task, loaded, registration)
            own = self._own_training.trained(task, loaded, registration, self._work(task))
        except TaskAbandoned:
            self._abandon()
            return
        # Before the outbox, and before anything is sent: see `client_worker.private_parts`. Not
        # before training has come to its end: of a task that is abandoned nothing is sent.
        self._coder.keep(task, registration, owed)
        self._memory.keep(task, registration, {**kept, **own})
        private = private_manifest(loaded.manifest, task.plan)
        if private.tensors:
            values = pick(loaded.trainer.trained_values(), private)
            self._private.keep(registration.run_id, task, values)
        if task.kind is TaskKind.TRAIN:
            self._keep_own(task, loaded)
        self._outbox.keep(task, update)
        self._session.handle(Event.TRAINED)
        self._submit(task, update, loaded, registration)

    def evaluate(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Scores the task's version and reports it."""
        self._session.handle(Event.EVALUATE_GIVEN)
        self._loader.bring(task, loaded, registration)
        with self._stop.window():
            scores = loaded.trainer.evaluate(
                EvaluationScope.GLOBAL,
                round=task.round,
                shard_index=task.shard_index,
                shard_count=task.shard_count,
            )
        if task.plan.personal_stage:
            try:
                scores = (*scores, *self._personal_scores(task, loaded, registration))
            except TaskAbandoned:
                self._abandon()
                return
        scores = (*scores, *self._own_training.scores(task, loaded, registration))
        if loaded.is_own:
            self._keep_own(task, loaded)
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
            log.info("evaluated", scores={e.label: dict(e.metrics) for e in scores})

    # --- steps ---------------------------------------------------------------------------

    def _settle(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Finds out whether an update was read that a restart has cut off from its answer."""
        left = self._outbox.left_behind(task)
        follows = self._coder.feeds_back(task, loaded) or bool(task.plan.sent_extras)
        if left is None or not follows:
            return
        status = self._asking.ask(
            "asking for an update's fate",
            lambda token: self._federation.upload_status(token, left.idempotency_key),
        )
        log.info("update_left_behind", task=left.task_id, state=status.state.value)
        if status.state is not UploadState.COMMITTED:
            self._take_back(left.task_id, task, loaded, registration)
        self._outbox.clear()

    def _take_back(
        self, task_id: str, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> None:
        """Forgets what came of an update that the server has not read."""
        self._coder.unread(task_id, task, loaded, registration)
        self._memory.unread(task_id, task, loaded, registration)

    def _trained(
        self, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> tuple[TrainedUpdate, Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Trains, scores the result on this worker's held-out data, encodes it.

        Returns:
            The update, what the run's plug-ins keep, and what the run's codec has left out.
        """
        remembered = self._memory.before(task, loaded, registration)
        loaded.began_from, loaded.pristine = None, False
        refines = task.kind is TaskKind.REFINE
        if refines:
            outcome = loaded.trainer.refine(self._work(task))
        else:
            extras = {**loaded.held.extras, **remembered}
            outcome = loaded.trainer.train(self._work(task), extras)
        metrics = _finite(outcome.metrics)
        self._telemetry.round_trained(
            RoundTrained(round=task.round, num_examples=outcome.num_examples, metrics=metrics)
        )
        rank = loaded.trainer.rank
        log.info("trained", num_examples=outcome.num_examples, rank=rank, metrics=metrics)
        scores: tuple[Evaluation, ...] = ()
        # What a refinement came to is scored by those whose data it is for.
        if loaded.assignment[0].rounds.evaluate and not refines:
            with self._stop.window():
                scores = loaded.trainer.evaluate(EvaluationScope.LOCAL, round=task.round)
        counts = outcome.num_examples > 0
        coded = self._coder.update(task, loaded, registration, counts=counts)
        update = TrainedUpdate(
            payload=encode({**coded.tensors, **outcome.sent_extras}),
            num_examples=outcome.num_examples,
            metrics=metrics,
            evaluations=tuple(_finite_scores(e) for e in scores),
        )
        return update, outcome.kept_extras, coded.residual

    def _personal_scores(
        self, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> tuple[Evaluation, ...]:
        """Makes the published adapter in the model this worker's own, keeps what that took."""
        self._loader.bring(
            replace(task, adapter_version=task.personal_version), loaded, registration
        )
        manifest = personal_manifest(loaded.shape, task.plan)
        before = self._personal.before(registration.run_id, task, manifest)
        loaded.began_from, loaded.pristine = None, False
        magnitudes = loaded.trainer.personalise(
            self._work(task), before.tensors if before else None
        )
        self._personal.keep(registration.run_id, task, magnitudes)
        log.info("personalised", begun_in_round=before.round if before else None)
        with self._stop.window():
            return loaded.trainer.evaluate(EvaluationScope.PERSONAL, round=task.round)

    def _keep_own(self, task: Task, loaded: LoadedTrainer) -> None:
        """Writes down the adapter in the model, which is this worker's own."""
        if self._own.is_kept:
            adapter = {**loaded.base_change, **loaded.trainer.trained_values()}
            self._own.keep(loaded.assignment[0], task, loaded.held.version, adapter)

    def _work(self, task: Task) -> RoundWork:
        return RoundWork(
            round=task.round,
            seed=task.seed,
            plan=task.plan,
            on_progress=self._reporting(task),
            should_abandon=self._should_abandon,
        )

    def _reporting(self, task: Task) -> OnProgress:
        def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            done, finite = {"completed_steps": step, "total_steps": steps}, _finite(metrics)
            self._telemetry.step_done(StepDone(round=task.round, metrics=finite, **done))
            self._progress.offer(Progress(task_id=task.task_id, metrics=finite, **done))

        return report

    def _should_abandon(self) -> bool:
        return self._stop.requested or self._heartbeats.abandoned

    def _abandon(self) -> None:
        """Drops the work in hand, unless the worker has to end."""
        self._stop.check()
        self._heartbeats.raise_if_fenced()
        self._session.handle(Event.DROPPED)
        log.info("abandoned")

    def _submit(
        self,
        task: Task,
        update: TrainedUpdate,
        loaded: LoadedTrainer,
        registration: Registration,
    ) -> None:
        """Sends an update until it is acknowledged, or refused as too late."""
        payload = update.payload

        def push(token: str) -> Acknowledgement:
            header = UpdateHeader(
                session_token=token,
                run_id=registration.run_id,
                task_id=task.task_id,
                round=task.round,
                base_version=task.adapter_version,
                idempotency_key=idempotency_key(task.task_id, payload.digest),
                total_bytes=payload.total_bytes,
                manifest=payload.manifest,
                num_examples=update.num_examples,
                metrics=update.metrics,
                evaluations=update.evaluations,
            )
            return self._federation.push_update(
                header, payload, max_chunk_bytes=registration.limits.chunk_bytes
            )

        began = time.monotonic()
        try:
            acknowledgement = self._asking.ask("submitting the update", push)
        except RefusedError as refused:
            self._drop_if_stale(refused)
            self._take_back(task.task_id, task, loaded, registration)
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
    return replace(scores, metrics=_finite(scores.metrics))
