"""The runs of a server: which there are, what operators do with them, and what is stored of them.

The servicer in `transport` decodes a request, calls one method here, and encodes what it returns.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aggregator_service.disk_watch import DiskWatch
from aggregator_service.engine import AggregationEngine
from aggregator_service.new_run import checked_recipe
from aggregator_service.observers import Observer
from aggregator_service.reported_numbers import shown
from aggregator_service.rounds.events import RunStarted, RunStopped
from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.rounds.summary import describe
from aggregator_service.run_actor import RunActor
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.telemetry import Telemetry
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import RoundReport, Run, RunEvent
from fedlora.runs.spec import RunSpec

__all__ = ["Coordinator"]

_REPORTS_AT_ONCE = 100
"""read from the database; with a thousand workers each has some 0.5 MB"""


class Coordinator:
    """All runs of one server.

    Args:
        store: durable state.
        blobs: updates and adapters.
        engine: aggregation.
        observer: told of every commit.
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
        worker_timeout_seconds: float,
        disk: DiskWatch,
        telemetry: Telemetry,
    ) -> None:
        self.store = store
        self.blobs = blobs
        self.disk = disk
        self.telemetry = telemetry
        self._engine = engine
        self._observer = observer
        self._worker_timeout = worker_timeout_seconds
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
        # Without a transport nobody has drained: what is due to work ahead finds no engine.
        self._draining = True
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
                INVALID_ARGUMENT for a method, rule, option or adapter kind the server cannot run;
                INVALID_CONFIG for a package of one that cannot be loaded.
        """
        # A caller that goes away in the middle must not part the stored runs from ours.
        return await asyncio.shield(self._create_run(spec, start=start))

    async def _create_run(self, spec: RunSpec, *, start: bool) -> Run:
        existing = next((a for a in self._runs.values() if a.state.spec.name == spec.name), None)
        if existing is None:
            recipe = checked_recipe(spec, has_base_weights=self._engine.has_base_weights)
            run_id = f"{spec.name}-{secrets.token_hex(4)}"
            state = RunState(
                run_id=run_id,
                spec=spec,
                plans=recipe.plans(spec.adapter.kind),
                created_at=time.time(),
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
        if start:
            await existing.apply_if_possible(RunStarted())
        return describe(existing.state)

    async def start_run(self, run: str) -> Run:
        """Lets a created run begin; one that has begun stays as it is."""
        actor = self.run(run)
        await actor.apply_if_possible(RunStarted())
        return describe(actor.state)

    async def stop_run(self, run: str, reason: str) -> Run:
        """Ends a run; one that has ended stays as it is."""
        actor = self.run(run)
        await actor.apply_if_possible(RunStopped(shown(reason) or "stopped by an operator"))
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

    def find(self, run_id: str) -> RunActor | None:
        """The run with an id, if there is one."""
        return self._runs.get(run_id)

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

    @asynccontextmanager
    async def servable(
        self, actor: RunActor, adapter: AdapterRecord
    ) -> AsyncIterator[tuple[Path, int]]:
        """File and rank of a version in the form that PEFT loads; there while the block lasts."""
        digest, rank = await self._engine.servable(actor.state.spec, adapter)
        try:
            yield self.blobs.path(digest), rank
        finally:
            self.blobs.release(digest)


def _spec_difference(old: RunSpec, new: RunSpec) -> str:
    parts = [
        f"{name} was {getattr(old, name)!r}, is {getattr(new, name)!r}"
        for name in RunSpec.__dataclass_fields__
        if getattr(old, name) != getattr(new, name)
    ]
    return "; ".join(parts)[:1000]
