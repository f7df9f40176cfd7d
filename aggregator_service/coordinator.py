"""What the server can do, in domain words: sessions, tasks, adapters, runs.

The servicers in `transport` decode a request, call one method here, and encode what it returns.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aggregator_service.aggregation import registry
from aggregator_service.aggregation.run_checks import check_run
from aggregator_service.caller import check_is_worker
from aggregator_service.disk_watch import DiskWatch
from aggregator_service.engine import AggregationEngine
from aggregator_service.reported_numbers import check_scores
from aggregator_service.rounds.assignment import (
    changed_parts,
    check_evaluation,
    directive_for,
    task_for,
)
from aggregator_service.rounds.events import (
    AdapterConfirmed,
    EvaluationReported,
    RunStarted,
    RunStopped,
    WorkerLeft,
    WorkerRegistered,
)
from aggregator_service.rounds.membership import session_epoch
from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.rounds.summary import describe
from aggregator_service.run_actor import Observer, RunActor
from aggregator_service.sessions import check_session, issue, parse, unknown_session
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.telemetry import Telemetry
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterLayout
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import RoundReport, Run, RunEvent
from fedlora.runs.spec import RunSpec
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

__all__ = [
    "MAX_TASK_WAIT_SECONDS",
    "Coordinator",
]

MAX_TASK_WAIT_SECONDS = 60.0
"""longest poll for a task; proxies drop calls that are silent for longer"""

_REPORTS_AT_ONCE = 100
"""read from the database; with a thousand workers each has some 0.5 MB"""


class Coordinator:
    """All runs of one server.

    Args:
        store: durable state.
        blobs: updates and adapters.
        engine: aggregation.
        observer: told of every commit.
        limits: what workers are allowed.
        worker_timeout_seconds: silence after which a worker counts as lost.
        disk: told of writes that fail.
        telemetry: told of what the server does.
    """

    def __init__(
        self,
        *,
        store: ThreadedStore,
        blobs: BlobStore,
        engine: AggregationEngine,
        observer: Observer,
        limits: Limits,
        worker_timeout_seconds: float,
        disk: DiskWatch,
        telemetry: Telemetry,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.blobs = blobs
        self.limits = limits
        self.disk = disk
        self.telemetry = telemetry
        self._engine = engine
        self._observer = observer
        self._worker_timeout = worker_timeout_seconds
        self._wall = wall
        self._runs: dict[str, RunActor] = {}
        self._draining = False

    # --- life ----------------------------------------------------------------------------

    async def open(self) -> None:
        """Loads the stored runs and goes on with those that have not ended."""
        for state, clock in await self.store.call(lambda s: s.load_runs()):
            actor = self._actor(state, clock)
            await actor.resume()
            actor.start()

    async def wait_until_workers_left(self, *, timeout_seconds: float) -> None:
        """Returns once no worker of an ended run is still there, or after the time given."""
        until = time.monotonic() + timeout_seconds
        for actor in self._runs.values():
            while actor.has_live_workers and (left := until - time.monotonic()) > 0:
                await actor.wait_for_change(left)

    def drain(self) -> None:
        """Lets nobody wait any longer: who polls for a task or watches a run is sent away."""
        self._draining = True
        for actor in self._runs.values():
            actor.wake()

    def check_serving(self) -> None:
        """Raises UNAVAILABLE for calls that would wait, once the server is leaving."""
        if self._draining:
            raise FedLoraError(
                Reason.UNAVAILABLE,
                "the server is shutting down",
                hint="Try again: a server that comes back goes on where this one ends",
            )

    async def close(self) -> None:
        """Stops driving all runs."""
        for actor in self._runs.values():
            await actor.close()
        await self.disk.close()
        self._engine.close()

    def _actor(self, state: RunState, clock: float) -> RunActor:
        actor = RunActor(
            state,
            clock_base=clock,
            store=self.store,
            engine=self._engine,
            observer=self._observer,
            worker_timeout_seconds=self._worker_timeout,
            disk=self.disk,
            telemetry=self.telemetry,
            wall=self._wall,
        )
        self._runs[state.run_id] = actor
        return actor

    def prepare(self, actor: RunActor) -> None:
        """Lets the engine work ahead on what a round has by now."""
        if not self._draining:
            self._engine.prepare(actor.state)

    # --- operators -----------------------------------------------------------------------

    async def create_run(self, spec: RunSpec, *, start: bool) -> Run:
        """Creates a run, or returns the one of that name if its spec is the same.

        Raises:
            FedLoraError: ALREADY_EXISTS for another spec under the name; UNSUPPORTED_METHOD or
                INVALID_ARGUMENT for a method, option or adapter kind the server cannot run.
        """
        existing = next((a for a in self._runs.values() if a.state.spec.name == spec.name), None)
        if existing is None:
            recipe = registry.create_recipe(spec.method, spec.plugins)
            check_run(recipe, spec, has_base_weights=self._engine.has_base_weights)
            run_id = f"{spec.name}-{secrets.token_hex(4)}"
            state = RunState(
                run_id=run_id,
                spec=spec,
                plans=recipe.plans(spec.adapter.kind),
                created_at=self._wall(),
            )
            existing = self._actor(state, 0.0)
            try:
                await existing.create()
            except BaseException:
                del self._runs[run_id]
                raise
            existing.start()
        elif existing.state.spec != spec:
            raise FedLoraError(
                Reason.ALREADY_EXISTS,
                f"run {spec.name!r} exists with another configuration: "
                f"{_spec_difference(existing.state.spec, spec)}",
                hint="Choose another run.name, or go on with the old configuration",
            )
        if start and existing.state.phase is RunPhase.CREATED:
            await existing.apply(RunStarted())
        return describe(existing.state)

    async def start_run(self, run: str) -> Run:
        """Lets a created run begin; one that has begun stays as it is."""
        actor = self.run(run)
        if actor.state.phase is RunPhase.CREATED:
            await actor.apply(RunStarted())
        return describe(actor.state)

    async def stop_run(self, run: str, reason: str) -> Run:
        """Ends a run; one that has ended stays as it is."""
        actor = self.run(run)
        if not actor.state.phase.is_final:
            await actor.apply(RunStopped(reason or "stopped by an operator"))
        return describe(actor.state)

    def runs(self) -> tuple[RunActor, ...]:
        """All runs, oldest first."""
        return tuple(sorted(self._runs.values(), key=lambda a: a.state.created_at))

    def run(self, run: str) -> RunActor:
        """The run with an id or name; NOT_FOUND names those there are."""
        for actor in self._runs.values():
            if run in (actor.state.run_id, actor.state.spec.name):
                return actor
        known = ", ".join(a.state.spec.name for a in self.runs()) or "none"
        raise FedLoraError(
            Reason.NOT_FOUND, f"no run {run[:100]!r} on this server; there are: {known}"
        )

    async def reports(self, actor: RunActor) -> AsyncIterator[RoundReport]:
        """The run's completed rounds, in order; never all of them in memory."""
        run_id, last = actor.state.run_id, 0

        def page(store: StateStore) -> tuple[RoundReport, ...]:
            return store.reports(run_id, after=last, limit=_REPORTS_AT_ONCE)

        while reports := await self.store.call(page):
            for report in reports:
                yield report
            last = reports[-1].round

    async def report(self, actor: RunActor, round: int) -> RoundReport:
        """A completed round, 0 for the last; NOT_FOUND before it is."""
        state = actor.state
        found = await (self._report(state.run_id, round) if round else self.last_report(actor))
        if found is None:
            raise FedLoraError(
                Reason.NOT_FOUND,
                f"run {state.spec.name!r} is {state.phase.value} in round {state.round}, and has "
                f"no report of {f'round {round}' if round else 'any round'}",
            )
        return found

    async def last_report(self, actor: RunActor) -> RoundReport | None:
        """The last completed round; None before the first is."""
        run_id, current = actor.state.run_id, actor.state.round
        return await self._report(run_id, current) or await self._report(run_id, current - 1)

    async def _report(self, run_id: str, round: int) -> RoundReport | None:
        return await self.store.call(lambda s: s.report(run_id, round))

    async def events(self, actor: RunActor, first_sequence: int) -> tuple[RunEvent, ...]:
        """Up to a thousand stored events from a sequence number on."""
        run_id = actor.state.run_id
        return await self.store.call(lambda s: s.events(run_id, first_sequence=first_sequence))

    async def adapter(self, actor: RunActor, version: int | None) -> AdapterRecord:
        """A published version, or the newest; NOT_FOUND if it is not there."""
        newest = actor.state.version
        wanted = newest if version is None else version
        if wanted is not None:
            run_id = actor.state.run_id
            record = await self.store.call(lambda s: s.adapter(run_id, wanted))
            if record is not None:
                return record
        raise FedLoraError(
            Reason.NOT_FOUND,
            f"run {actor.state.spec.name!r} has no adapter version "
            f"{'yet' if wanted is None else wanted}"
            + ("" if newest is None else f"; the newest is {newest}"),
        )

    async def servable(self, actor: RunActor, adapter: AdapterRecord) -> tuple[str, int]:
        """Digest and rank of a version in the form that PEFT loads."""
        return await self._engine.servable(actor.state.spec, adapter)

    # --- workers -------------------------------------------------------------------------

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
        actor = self._runs.get(parsed.run_id)
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
            FedLoraError: UNAVAILABLE once the server is leaving; UNKNOWN_SESSION for a session that
                has not confirmed the adapter. A worker asks only after that, so this state was
                restored from before it: the worker must tell again who it is and what it holds.
        """
        budget = min(max(0.0, max_wait_seconds), MAX_TASK_WAIT_SECONDS)
        until = time.monotonic() + budget
        actor, worker = self.session(token)
        while True:
            self.check_serving()
            if not (actor.state.workers[worker].confirmed or actor.state.phase.is_final):
                raise unknown_session()
            task = task_for(actor.state, worker, actor.now())
            left = until - time.monotonic()
            if task.kind is not TaskKind.WAIT or left <= 0:
                return task
            await actor.wait_for_task(worker, left)
            # Only the call itself was a sign of life: its worker may have vanished since.
            self._find_session(token)

    async def open_adapter(
        self, token: str, version: int, start_offset: int, held_version: int | None = None
    ) -> tuple[AdapterHeader, Path]:
        """The file of a published version at the worker's rank, and the header that goes before.

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
        record = await self.adapter(actor, version)
        parts = frozenset(Part)
        if held_version is not None:
            run_id = actor.state.run_id
            held = await self.store.call(lambda s: s.adapter(run_id, held_version))
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
        return header, self.blobs.path(copy.digest)

    async def report_evaluation(
        self, token: str, task_id: str, evaluations: tuple[Evaluation, ...]
    ) -> None:
        """Counts a worker's scores of the published adapter, once."""
        actor, worker = self.session(token)
        check_scores(evaluations, num_labels=len(actor.state.spec.adapter.labels))
        if check_evaluation(actor.state, worker, task_id, actor.now()):
            await actor.apply(EvaluationReported(worker, evaluations))

    def report_progress(self, token: str, progress: Progress) -> None:
        """Tells watchers how far a worker has got."""
        actor, worker = self.session(token)
        actor.publish_progress(
            worker,
            {
                "task_id": progress.task_id,
                "completed_steps": progress.completed_steps,
                "total_steps": progress.total_steps,
                **{k: v for k, v in progress.metrics.items() if math.isfinite(v)},
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
        await actor.apply(WorkerLeft(worker, reason[:500]))

    def _run_to_join(self, run_name: str) -> RunActor:
        if run_name:
            return self.run(run_name)
        open_runs = [a for a in self.runs() if not a.state.phase.is_final]
        if len(open_runs) > 1:
            names = ", ".join(a.state.spec.name for a in open_runs)
            raise FedLoraError(
                Reason.NO_OPEN_RUN,
                f"this server has {len(open_runs)} open runs: {names}",
                hint="Name the run to join: worker.run_name",
            )
        # A worker that comes late to the only run is told that it is over.
        candidates = open_runs or list(self.runs())[-1:]
        if not candidates:
            raise FedLoraError(
                Reason.NO_OPEN_RUN,
                "this server has no run to join",
                hint="Create one: fedlora serve --config FILE with a [run] section",
            )
        return candidates[0]


def _spec_difference(old: RunSpec, new: RunSpec) -> str:
    parts = [
        f"{name} was {getattr(old, name)!r}, is {getattr(new, name)!r}"
        for name in RunSpec.__dataclass_fields__
        if getattr(old, name) != getattr(new, name)
    ]
    return "; ".join(parts)[:1000]
