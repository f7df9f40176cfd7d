"""One run, driven: events in, durable transitions out, effects begun, watchers told.

A run's state changes in one place, `apply`, under one lock: step (pure), commit (durable), then
memory, then effects. Whoever waits for something waits on `wait_for_change`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from aggregator_service.clock import RunClock
from aggregator_service.disk_watch import DiskWatch
from aggregator_service.engine import AggregationEngine
from aggregator_service.failpoints import Failpoint, reach
from aggregator_service.observers import Observer
from aggregator_service.progress_feed import ProgressFeed
from aggregator_service.rounds.events import (
    AdapterAggregated,
    AdapterRefined,
    Aggregate,
    AggregationFailed,
    Certify,
    DeadlineChecked,
    Effect,
    Event,
    Fact,
    Refine,
    Transition,
    WorkerLost,
    WorkerReturned,
)
from aggregator_service.rounds.history import as_events, certificate_ready
from aggregator_service.rounds.machine import TABLE, pending_effects, step
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import RunState
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.task_waits import TaskWaits
from aggregator_service.telemetry import Telemetry
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import Certificate, EventType, RunEvent, WorkerState
from fedlora.telemetry.logs import bind_context

__all__ = ["RunActor"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


_SHORTEST_WAIT_SECONDS = 0.01
_REFUSED_WAIT_SECONDS = 5.0


class RunActor:
    """Drives one run.

    Args:
        state: as stored, or new.
        clock_base: the run's clock when it was stored.
        store: durable state.
        engine: aggregation, off the event loop.
        observer: told of every commit.
        worker_timeout_seconds: silence after which a worker counts as lost.
        disk: told of writes that fail.
        telemetry: told of commits.
        monotonic, wall: time, replaced in tests.
    """

    def __init__(
        self,
        state: RunState,
        *,
        clock_base: float,
        store: ThreadedStore,
        engine: AggregationEngine,
        observer: Observer,
        worker_timeout_seconds: float,
        disk: DiskWatch,
        telemetry: Telemetry,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._clock = RunClock(clock_base, monotonic)
        self._clock_stored = clock_base
        self._monotonic = monotonic
        self._wall = wall
        self._store = store
        self._engine = engine
        self._observer = observer
        self._worker_timeout = worker_timeout_seconds
        self._disk = disk
        self._telemetry = telemetry
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._task_waits = TaskWaits()
        self._last_seen = {name: monotonic() for name in state.workers}
        self._silence_due = monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.progress = ProgressFeed()
        """of its workers"""
        self._certifying: set[int] = set()
        self._bytes_down = 0

    # --- reading -------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The run as it is durable now."""
        return self._state

    def now(self) -> float:
        """The run's clock, in seconds."""
        return self._clock.now()

    @property
    def is_settled(self) -> bool:
        """The run has ended and every certificate is there."""
        return self._state.phase.is_final and not self._certifying

    @property
    def has_live_workers(self) -> bool:
        """Some worker has neither left nor been lost."""
        return any(self._state.is_expected(name) for name in self._state.workers)

    @property
    def next_change(self) -> asyncio.Event:
        """Set once anything about the run changes after this: take it, then look, then wait."""
        return self._changed

    async def wait_for_change(self, timeout_seconds: float | None) -> None:
        """Returns once anything about the run has changed, or after the time given."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self.next_change.wait()

    async def wait_for_task(self, worker: str, timeout_seconds: float) -> None:
        """See `TaskWaits.wait`."""
        await self._task_waits.wait(worker, self._state, timeout_seconds)

    def wake(self) -> None:
        """Makes whoever waits look again."""
        self._notify()
        self._task_waits.wake_all()

    # --- changing ------------------------------------------------------------------------

    async def apply(
        self,
        event: Event,
        *,
        before_commit: Callable[[RunState], None] | None = None,
        afterwards: Callable[[], None] = lambda: None,
    ) -> Transition:
        """Applies an event and makes the result durable before anybody learns of it.

        Args:
            event: what happened.
            before_commit: blocking work that belongs to the same step, such as giving a blob its
                final name; runs in a thread once the event is known to be acceptable. If it
                raises, nothing has changed.
            afterwards: called when the result is durable or never will be, also where the caller
                has gone away by then.

        Raises:
            FedLoraError: as `step` does, or as the store does; the run is unchanged then.
        """
        # A caller that goes away in the middle must not part the stored state from ours.
        applied = self._spawn(self._apply(event, before_commit))
        applied.add_done_callback(lambda _: afterwards())
        return await asyncio.shield(applied)

    async def _apply(
        self, event: Event, before_commit: Callable[[RunState], None] | None
    ) -> Transition:
        async with self._lock:
            now = self.now()
            transition = step(self._state, event, now)
            if before_commit is not None:
                await asyncio.to_thread(before_commit, transition.state)
            await self._commit(transition, now)
        if any(isinstance(effect, Aggregate) for effect in transition.effects):
            reach(Failpoint.ROUND_CLOSED)
        if transition.reports:
            reach(Failpoint.ROUND_COMMITTED)
        for effect in transition.effects:
            self._begin(effect)
        if transition.state.phase in (RunPhase.STOPPED, RunPhase.FAILED):
            self._engine.forget(self._state.run_id)
        return transition

    async def create(self) -> None:
        """Stores a new run."""
        async with self._lock:
            fact = Fact(type=EventType.RUN_CREATED, detail={"name": self._state.spec.name})
            await self._commit(Transition(state=self._state, facts=(fact,)), self.now())

    async def resume(self) -> None:
        """Goes on with a stored run: repeats the effects of its phase, makes up certificates."""
        if not self._state.phase.is_final:
            async with self._lock:
                fact = Fact(
                    type=EventType.SERVER_RESTARTED,
                    round=self._state.round,
                    detail={"phase": self._state.phase.value},
                )
                await self._commit(Transition(state=self._state, facts=(fact,)), self.now())
        for effect in pending_effects(self._state):
            self._begin(effect)
        run_id = self._state.run_id
        for round in await self._store.call(lambda s: s.uncertified_rounds(run_id)):
            if self._state.certifies(round):
                self._begin_certificate(round)

    def touch(self, worker: str) -> None:
        """Notes that a worker was heard of just now."""
        self._last_seen[worker] = self._monotonic()
        if self._state.workers[worker].state is WorkerState.LOST:
            self._spawn(self._return(worker))

    async def _return(self, worker: str) -> None:
        try:
            await self.apply_if_possible(WorkerReturned(worker))
        except FedLoraError as error:
            # It will be heard of again.
            self._disk.noticed(error)

    def count_download(self, num_bytes: int) -> None:
        """Counts bytes of adapters sent to workers, for the round's report."""
        self._bytes_down += num_bytes

    # --- watching ------------------------------------------------------------------------

    def publish_progress(self, worker: str, detail: dict[str, object]) -> None:
        """Tells watchers how far a worker has got; nothing is stored."""
        event = RunEvent(
            sequence=0,
            type=EventType.WORKER_PROGRESS,
            time=self._wall(),
            round=self._state.round,
            worker=worker,
            detail=detail,
        )
        self.progress.publish(event)

    # --- driving -------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to drive the run: deadlines and silent workers."""
        self._spawn(self._drive())

    async def close(self) -> None:
        """Stops driving; the stored state is what a later server finds."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self) -> None:
        while not self._state.phase.is_final:
            least = _SHORTEST_WAIT_SECONDS
            bind_context(round=self._state.round)
            try:
                await self._look()
            except FedLoraError:
                # Nothing has changed; what was due is still due when it is looked at again.
                log.exception("step_refused")
                least = _REFUSED_WAIT_SECONDS
            wait, deadline = self._worker_timeout / 4, self._state.deadline
            if deadline is not None:
                wait = min(wait, max(least, deadline - self.now()))
            await self.wait_for_change(wait)

    async def _look(self) -> None:
        """Does what time has made due: workers that are silent, a deadline that has passed."""
        if self._monotonic() >= self._silence_due:
            self._silence_due = self._monotonic() + self._worker_timeout / 4
            await self._look_for_silence()
        if self._state.deadline is not None and self.now() >= self._state.deadline:
            await self._disk.insist("a deadline", lambda: self.apply_if_possible(DeadlineChecked()))
        elif self._state.deadline is not None:
            await self._keep_time()

    async def _keep_time(self) -> None:
        """Stores the clock where nothing else has for a while, or a restart would set it back.

        A server that is killed again and again would never come to a deadline.
        """
        if self.now() - self._clock_stored < self._worker_timeout / 4:
            return
        async with self._lock:
            now = self.now()
            transaction = Transaction(state=self._state, clock=now)
            await self._store.call(lambda s: s.commit(transaction))
            self._clock_stored = now

    async def _look_for_silence(self) -> None:
        for name in list(self._state.workers):
            # One that has registered this very moment may not have been noted yet.
            heard = self._last_seen.setdefault(name, self._monotonic())
            silent = self._monotonic() - heard
            if self._state.is_expected(name) and silent > self._worker_timeout:
                lost = functools.partial(self.apply_if_possible, WorkerLost(name))
                await self._disk.insist("losing a worker", lost)

    async def apply_if_possible(self, event: Event) -> None:
        """As `apply`, but nothing happens where the run's phase does not allow the event."""
        # Between the look and the lock the run may have moved on: then the event is void.
        try:
            if self._state.phase in TABLE[type(event)]:
                await self.apply(event)
        except FedLoraError as error:
            if error.reason is not Reason.WRONG_PHASE:
                raise

    def _begin(self, effect: Effect) -> None:
        if isinstance(effect, Certify):
            self._begin_certificate(effect.round)
        else:
            self._spawn(self._combine(effect))

    async def _combine(self, effect: Aggregate | Refine) -> None:
        state = self._state

        async def combine() -> AdapterAggregated | AdapterRefined:
            if isinstance(effect, Refine):
                return AdapterRefined(await self._engine.refine(state))
            return AdapterAggregated(await self._engine.aggregate(state, self._store))

        done: AdapterAggregated | AdapterRefined | AggregationFailed
        try:
            done = await self._disk.insist("aggregation", combine)
        except FedLoraError as error:
            done = AggregationFailed(str(error))
        except Exception:
            log.exception("aggregation_failed")
            done = AggregationFailed("internal error, see the server's log")
        await self._disk.insist("a new version", lambda: self.apply_if_possible(done))
        self._engine.settled(state.run_id)

    def _begin_certificate(self, round: int) -> None:
        self._certifying.add(round)
        self._spawn(self._certify(round))

    async def _certify(self, round: int) -> None:
        try:
            await self._disk.insist("a certificate", lambda: self._measure(round))
        except Exception:
            # The adapter is published and right; only its measurement is missing.
            log.exception("certificate_failed", round=round)
        finally:
            self._certifying.discard(round)
            self._notify()

    async def _measure(self, round: int) -> None:
        certificate = await self._engine.certify(self._state, round, self._store)
        fact = certificate_ready(round, certificate)
        async with self._lock:
            # With the certificate the run may be settled: whoever waits for that looks now.
            self._certifying.discard(round)
            await self._commit(
                Transition(state=self._state, facts=(fact,)),
                self.now(),
                certificates=((round, certificate),),
            )

    async def _commit(
        self,
        transition: Transition,
        now: float,
        *,
        certificates: tuple[tuple[int, Certificate], ...] = (),
    ) -> None:
        state, wall = transition.state, self._wall()
        if (
            state == self._state
            and not transition.facts
            and not transition.updates
            and not certificates
        ):
            return
        events = as_events(transition.facts, after=self._state.last_sequence, time=wall)
        state = replace(state, last_sequence=self._state.last_sequence + len(events))
        bytes_down = self._bytes_down
        reports = tuple(replace(r, bytes_down=bytes_down) for r in transition.reports)
        transaction = Transaction(
            state=state,
            clock=now,
            events=events,
            updates=transition.updates,
            adapters=transition.adapters,
            reports=reports,
            certificates=certificates,
        )
        began = self._monotonic()
        await self._store.call(lambda s: s.commit(transaction))
        self._telemetry.committed(self._monotonic() - began)
        self._state = state
        self._clock_stored = now
        if reports:
            # Only now, and not those since: a step that could not be stored is done again.
            self._bytes_down -= bytes_down
        if certificates or reports:
            # Report and certificate become ready in either order; whoever looks gets both.
            changed = sorted({*(r.round for r in reports), *(round for round, _ in certificates)})
            found = await self._store.call(lambda s: [s.report(state.run_id, r) for r in changed])
            reports = tuple(report for report in found if report is not None)
        self._notify()
        self._task_waits.wake_concerned(state)
        self._observer.committed(state, events, reports)
        # What is durable is not undone by a log on a disk that is full.
        with suppress(OSError):
            _log(state, events)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        # What a run does is its own, whichever worker's call set it off: logs say so.
        context = contextvars.copy_context()
        context.run(bind_context, run=self._state.spec.name, round=self._state.round, worker=None)
        task = asyncio.get_running_loop().create_task(work, context=context)
        # The loop itself keeps only weak references.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _log(state: RunState, events: Sequence[RunEvent]) -> None:
    for event in events:
        log.info(
            event.type.value,
            run=state.spec.name,
            round=event.round,
            **({"worker": event.worker} if event.worker else {}),
            **_shown(event),
        )


def _shown(event: RunEvent) -> dict[str, object]:
    """The event's plain facts, for a log line; lists and tables are in the store."""
    return {k: v for k, v in event.detail.items() if isinstance(v, str | int | float)}
