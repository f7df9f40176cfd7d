"""One run, driven on a clock that the test moves, by an engine that is never done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from support.memory_store import InMemoryStateStore
from support.runs import MachineDriver, run_spec

from aggregator_service.disk_watch import DiskWatch
from aggregator_service.rounds.assignment import kind_for
from aggregator_service.rounds.events import (
    AdapterAggregated,
    DeadlineChecked,
    EvaluationReported,
    RunStopped,
    UpdateCommitted,
    WorkerLeft,
)
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.run_actor import RunActor
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.telemetry import Silent
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType, RoundReport, RunEvent
from fedlora.runs.tasks import TaskKind


class RefusingStore(InMemoryStateStore):
    """A store whose next commit may be told to fail."""

    refuses = False

    def commit(self, transaction: Transaction) -> None:
        if self.refuses:
            self.refuses = False
            raise FedLoraError(Reason.OUT_OF_SPACE, "no room on the server")
        super().commit(transaction)


class EndlessEngine:
    """Notes the rounds that it is asked to combine."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def aggregate(self, state: RunState, _: ThreadedStore) -> None:
        self.asked.append(state.round)
        await asyncio.Event().wait()

    def forget(self, run_id: str) -> None:
        """Nothing is computed ahead."""


@dataclass
class Host:
    """What a run lives on."""

    monotonic: float = 1000.0
    wall: float = 1_700_000_000.0
    worker_timeout: float = 10_000.0
    store: RefusingStore = field(default_factory=RefusingStore)
    engine: EndlessEngine = field(default_factory=EndlessEngine)
    events: list[EventType] = field(default_factory=list)

    def committed(self, _: RunState, events: Sequence[RunEvent], __: Sequence[RoundReport]) -> None:
        self.events.extend(event.type for event in events)

    @asynccontextmanager
    async def driving(self, state: RunState, clock: float) -> AsyncIterator[RunActor]:
        disk = DiskWatch(lambda: None)
        store = ThreadedStore(lambda: self.store)
        actor = RunActor(
            state,
            clock_base=clock,
            store=store,
            engine=self.engine,
            observer=self,
            worker_timeout_seconds=self.worker_timeout,
            disk=disk,
            telemetry=Silent(),
            monotonic=lambda: self.monotonic,
            wall=lambda: self.wall,
        )
        try:
            yield actor
        finally:
            await actor.close()
            await disk.close()
            store.close()


async def until(actor: RunActor, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await actor.wait_for_change(0.01)


def in_training() -> MachineDriver:
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    return driver


# --- time ----------------------------------------------------------------------------------


async def closes_after(seconds: float, actor: RunActor, host: Host) -> None:
    """The round's deadline is so far away, and not a second nearer."""
    host.monotonic += seconds - 1.0
    await actor.apply(DeadlineChecked())
    assert actor.state.extensions == 0
    host.monotonic += 1.0
    actor.wake()
    await until(actor, lambda: actor.state.extensions == 1)


@pytest.mark.parametrize("jump_seconds", [3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_moves_no_deadline(jump_seconds: float):
    driver, host = in_training(), Host()
    async with host.driving(driver.state, driver.now) as actor:
        actor.start()
        host.wall += jump_seconds
        assert actor.now() == driver.now
        await closes_after(60.0, actor, host)
        host.wall -= 2 * jump_seconds
        assert actor.now() == driver.now + 60.0
    assert host.events == [EventType.DEADLINE_EXTENDED]


async def test_a_deadline_survives_a_restart_as_the_time_that_was_left():
    driver, host = in_training(), Host()
    async with host.driving(driver.state, driver.now) as actor:
        host.monotonic += 40.0
        await actor.apply(UpdateCommitted(driver.update("a")))
    ((state, clock),) = host.store.load_runs()
    # The host has booted meanwhile: its clocks say something else altogether.
    host.monotonic, host.wall = 3.0, host.wall + 86_400.0
    async with host.driving(state, clock) as again:
        again.start()
        await closes_after(20.0, again, host)


async def test_a_server_that_was_killed_with_nothing_to_store_has_not_forgotten_the_time():
    driver, host = in_training(), Host(worker_timeout=100.0)
    async with host.driving(driver.state, driver.now) as actor:
        actor.start()
        host.monotonic += 40.0
        actor.wake()
        await until(actor, lambda: bool(host.store.load_runs()))
    ((state, clock),) = host.store.load_runs()
    assert state == driver.state
    assert clock == driver.now + 40.0
    assert host.events == []


# --- what is durable -----------------------------------------------------------------------


async def test_a_step_that_could_not_be_stored_has_not_happened():
    driver, host = in_training(), Host()
    update = UpdateCommitted(driver.update("a"))
    async with host.driving(driver.state, driver.now) as actor:
        host.store.refuses = True
        with pytest.raises(FedLoraError) as caught:
            await actor.apply(update)
        assert caught.value.reason is Reason.OUT_OF_SPACE
        assert actor.state == driver.state
        assert host.events == []
        await actor.apply(update)
        assert actor.state.updates.keys() == {"a"}


async def test_bytes_that_workers_have_pulled_are_told_though_the_report_was_refused_at_first():
    driver, host = in_training(), Host()
    driver.commit("a")
    driver.commit("b")
    driver.aggregated()
    driver.feed(EvaluationReported("a", ()))
    async with host.driving(driver.state, driver.now) as actor:
        actor.count_download(300)
        host.store.refuses = True
        with pytest.raises(FedLoraError, match="no room"):
            await actor.apply(EvaluationReported("b", ()))
        actor.count_download(7)
        await actor.apply(EvaluationReported("b", ()))
        report = host.store.report("run-1", 1)
        assert report is not None
        assert report.bytes_down == 307


async def test_a_server_that_comes_back_in_mid_aggregation_aggregates_again():
    driver, host = in_training(), Host()
    driver.commit("a")
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING
    async with host.driving(driver.state, driver.now) as actor:
        await actor.resume()
        await until(actor, lambda: bool(host.engine.asked))
    assert host.engine.asked == [1]


# --- who waits -----------------------------------------------------------------------------


async def test_a_waiting_worker_is_woken_by_what_concerns_it_and_by_nothing_else():
    driver, host = in_training(), Host()
    driver.join("c", "d")
    async with host.driving(driver.state, driver.now) as actor:
        calls = {name: asyncio.ensure_future(actor.wait_for_task(name, 60)) for name in "cd"}

        async def woken() -> set[str]:
            await asyncio.wait(calls.values(), timeout=0.05)
            return {name for name, call in calls.items() if call.done()}

        await actor.apply(UpdateCommitted(driver.update("a")))
        assert await woken() == set()
        await actor.apply(WorkerLeft("c", "enough"))
        assert await woken() == {"c"}
        await actor.apply(RunStopped("enough"))
        assert await woken() == {"c", "d"}


async def test_a_waiting_worker_is_woken_by_its_task_and_by_a_server_that_leaves():
    driver, host = in_training(), Host()
    async with host.driving(driver.state, driver.now) as actor:
        await actor.apply(UpdateCommitted(driver.update("a")))
        call = asyncio.ensure_future(actor.wait_for_task("a", 60))
        await asyncio.sleep(0)
        actor.wake()
        await asyncio.wait_for(call, 10)
        call = asyncio.ensure_future(actor.wait_for_task("a", 60))
        await asyncio.sleep(0)
        await actor.apply(UpdateCommitted(driver.update("b")))
        assert not call.done(), "the round is being combined"
        record = AdapterRecord(version=1, round=1, digest="1" * 64, total_bytes=100, rank=4)
        await actor.apply(AdapterAggregated(record))
        assert kind_for(actor.state, "a") is TaskKind.EVALUATE
        await asyncio.wait_for(call, 10)
        await actor.wait_for_task("b", 0.001)


# --- watchers ------------------------------------------------------------------------------


async def test_a_watcher_that_does_not_read_misses_the_oldest_and_costs_no_memory():
    driver, host = in_training(), Host()
    async with (
        host.driving(driver.state, driver.now) as actor,
        actor.progress.subscribe() as queue,
    ):
        for step in range(1000):
            actor.publish_progress("a", {"step": step})
        kept = [queue.get_nowait().detail["step"] for _ in range(queue.qsize())]
    assert kept == list(range(1000 - 256, 1000))
