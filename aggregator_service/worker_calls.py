"""What workers may do, in domain words: join a run, take its tasks, fetch adapters, report.

The servicer in `transport` decodes a request, calls one method here, and encodes what it returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aggregator_service.aggregation import registry
from aggregator_service.caller import check_is_worker
from aggregator_service.coordinator import Coordinator
from aggregator_service.engine import AggregationEngine
from aggregator_service.reported_numbers import (
    check_capabilities,
    check_metrics,
    check_scores,
    shown,
)
from aggregator_service.rounds.assignment import (
    changed_parts,
    check_evaluation,
    directive_for,
    task_for,
)
from aggregator_service.rounds.events import (
    AdapterConfirmed,
    EvaluationReported,
    WorkerLeft,
    WorkerRegistered,
)
from aggregator_service.rounds.membership import session_epoch
from aggregator_service.run_actor import RunActor
from aggregator_service.sessions import check_session, issue, parse, unknown_session
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterLayout
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import (
    AdapterHeader,
    Capabilities,
    DataSlot,
    Directive,
    Evaluation,
    Limits,
    Progress,
    Registration,
    Task,
    TaskKind,
    check_worker_name,
)
from fedlora.telemetry.logs import bind_context

__all__ = ["MAX_TASK_WAIT_SECONDS", "WorkerCalls"]

MAX_TASK_WAIT_SECONDS = 60.0
"""longest poll for a task; proxies drop calls that are silent for longer"""


class WorkerCalls:
    """The workers' side of one server.

    Args:
        coordinator: its runs.
        engine: makes the copies of adapters that workers load.
        limits: what workers are allowed.
    """

    def __init__(
        self, coordinator: Coordinator, engine: AggregationEngine, *, limits: Limits
    ) -> None:
        self.limits = limits
        self._coordinator = coordinator
        self._engine = engine

    async def register(
        self, *, name: str, run_name: str, instance_id: str, capabilities: Capabilities
    ) -> Registration:
        """Opens a session; NO_OPEN_RUN if there is nothing to join."""
        check_worker_name(name)
        check_is_worker(name)
        if not 1 <= len(instance_id) <= 128:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"instance_id must have 1 to 128 characters, got {len(instance_id)}",
            )
        check_capabilities(capabilities)
        actor = self._run_to_join(run_name)
        before = actor.state.workers.get(name)
        token, digest = issue(actor.state.run_id, name, session_epoch(before, instance_id))
        spec = actor.state.spec
        mixed = registry.create_recipe(spec.method, spec.plugins).takes_mixed_ranks
        transition = await actor.apply(
            WorkerRegistered(
                name=name,
                instance_id=instance_id,
                session_hash=digest,
                capabilities=capabilities,
                takes_mixed_ranks=mixed,
            )
        )
        actor.touch(name)
        worker = transition.state.workers[name]
        slot = None
        if worker.slot is not None and spec.partition is not None:
            slot = DataSlot(index=worker.slot, partition=spec.partition)
        return Registration(
            session_token=token,
            run_id=actor.state.run_id,
            run=spec,
            rank=worker.rank,
            limits=self.limits,
            data_slot=slot,
            replaced_session=before is not None and before.instance_id != instance_id,
        )

    def session(self, token: str) -> tuple[RunActor, str]:
        """The run and worker of a session, which thereby proves that it lives."""
        actor, worker = self._find_session(token)
        actor.touch(worker)
        # A call is a task of its own: what is bound stands on its lines and on no other's.
        state = actor.state
        bind_context(run=state.spec.name, round=state.round, worker=worker)
        return actor, worker

    def _find_session(self, token: str) -> tuple[RunActor, str]:
        parsed = parse(token)
        # Before anything is looked up: what there is of others is not for the caller to learn.
        check_is_worker(parsed.worker)
        actor = self._coordinator.find(parsed.run_id)
        if actor is None:
            raise unknown_session()
        check_session(parsed, actor.state.workers.get(parsed.worker))
        return actor, parsed.worker

    async def confirm_adapter(self, token: str, layout: AdapterLayout) -> str:
        """Makes a worker ready; returns the fingerprint the run is on."""
        actor, worker = self.session(token)
        transition = await actor.apply(AdapterConfirmed(worker, layout))
        fixed = transition.state.layout
        return fixed.base_fingerprint if fixed else ""

    async def await_task(self, token: str, max_wait_seconds: float) -> Task:
        """The worker's next task, as soon as there is one.

        Raises:
            FedLoraError: UNAVAILABLE once the server is leaving; SERVER_BUSY where too many calls
                of the worker's wait; UNKNOWN_SESSION for a session that has not confirmed the
                adapter. A worker asks only after that, so this state was restored from before it:
                the worker must tell again who it is and what it holds.
        """
        budget = min(max(0.0, max_wait_seconds), MAX_TASK_WAIT_SECONDS)
        until = time.monotonic() + budget
        actor, worker = self.session(token)
        while True:
            self._coordinator.check_serving()
            if not (actor.state.workers[worker].confirmed or actor.state.phase.is_final):
                raise _unconfirmed()
            task = task_for(actor.state, worker, actor.now())
            left = until - time.monotonic()
            if task.kind is not TaskKind.WAIT or left <= 0:
                return task
            await actor.wait_for_task(worker, left)
            # Only the call itself was a sign of life: its worker may have vanished since.
            self._find_session(token)

    @asynccontextmanager
    async def adapter(
        self, token: str, version: int, start_offset: int, held_version: int | None = None
    ) -> AsyncIterator[tuple[AdapterHeader, Path]]:
        """The file of a published version at the worker's rank, and the header that goes before.

        The file is there while the block lasts.

        Args:
            token: of the session.
            version: wanted.
            start_offset: where an interrupted download goes on.
            held_version: an earlier version that the worker still has whole; what has not
                changed since is left out.

        Raises:
            FedLoraError: NOT_FOUND, or OFFSET_MISMATCH for an offset beyond the end.
        """
        actor, worker = self.session(token)
        record = await self._coordinator.adapter(actor, version)
        parts = frozenset(Part)
        if held_version is not None:
            run_id = actor.state.run_id
            held = await self._coordinator.store.call(lambda s: s.adapter(run_id, held_version))
            # One that this state has never had, such as after a restore: everything is sent.
            parts = changed_parts(actor.state, held, record) if held else parts
        rank = actor.state.workers[worker].rank
        copy = await self._engine.copy_for(actor.state.spec, record, rank, parts)
        header = AdapterHeader(
            run_id=actor.state.run_id,
            adapter_version=record.version,
            round=record.round,
            rank=copy.rank,
            total_bytes=copy.total_bytes,
            digest=bytes.fromhex(copy.digest),
            manifest=copy.manifest,
            held_version=held_version if parts < frozenset(Part) else None,
        )
        if start_offset > copy.total_bytes:
            raise FedLoraError(
                Reason.OFFSET_MISMATCH,
                f"start_offset is {start_offset}, the adapter has {copy.total_bytes} bytes",
            )
        actor.count_download(copy.total_bytes - start_offset)
        blobs = self._coordinator.blobs
        with blobs.pinned(copy.digest):
            yield header, blobs.path(copy.digest)

    async def report_evaluation(
        self, token: str, task_id: str, evaluations: tuple[Evaluation, ...]
    ) -> None:
        """Counts a worker's scores of the published adapter, once."""
        actor, worker = self.session(token)
        check_scores(evaluations, actor.state.spec)
        if check_evaluation(actor.state, worker, task_id, actor.now()):
            await actor.apply(EvaluationReported(worker, evaluations))

    def report_progress(self, token: str, progress: Progress) -> None:
        """Tells watchers how far a worker has got."""
        actor, worker = self.session(token)
        metrics = {k: v for k, v in progress.metrics.items() if math.isfinite(v)}
        check_metrics(metrics)
        actor.publish_progress(
            worker,
            {
                **metrics,
                "task_id": shown(progress.task_id),
                "completed_steps": progress.completed_steps,
                "total_steps": progress.total_steps,
            },
        )

    def heartbeat(self, token: str, task_id: str) -> Directive:
        """Whether the task in hand still counts."""
        # Not `session`: a beat writes no line of its own, so that nothing need be bound for one.
        actor, worker = self._find_session(token)
        actor.touch(worker)
        return directive_for(actor.state, worker, task_id, actor.now())

    async def leave(self, token: str, reason: str) -> None:
        """Ends a session in good order."""
        actor, worker = self.session(token)
        await actor.apply(WorkerLeft(worker, shown(reason)))

    def _run_to_join(self, run_name: str) -> RunActor:
        if run_name:
            return self._coordinator.run(run_name)
        open_runs = [a for a in self._coordinator.runs() if not a.state.phase.is_final]
        if len(open_runs) > 1:
            names = ", ".join(a.state.spec.name for a in open_runs)
            raise FedLoraError(
                Reason.NO_OPEN_RUN,
                f"this server has {len(open_runs)} open runs: {names}",
                hint="Name the run to join: worker.run_name",
            )
        # A worker that comes late to the only run is told that it is over.
        candidates = open_runs or list(self._coordinator.runs())[-1:]
        if not candidates:
            raise FedLoraError(
                Reason.NO_OPEN_RUN,
                "this server has no run to join",
                hint="Create one: fedlora serve --config FILE with a [run] section",
            )
        return candidates[0]


def _unconfirmed() -> FedLoraError:
    return FedLoraError(
        Reason.UNKNOWN_SESSION,
        "a session that has confirmed the adapter was expected, this one has not",
        hint="Register again, and call ConfirmAdapter before AwaitTask",
    )
