"""Deadlines run on the run's own clock: the wall's jumps are none of its business."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.memory_store import InMemoryStateStore
from support.runs import LAYOUT, MachineDriver, run_spec

from aggregator_service.clock import RunClock
from aggregator_service.disk_watch import DiskWatch
from aggregator_service.engine import AggregationEngine
from aggregator_service.rounds.events import DeadlineChecked
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import RunState
from aggregator_service.run_actor import RunActor
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.telemetry import Silent
from fedlora.runs.phase import RunPhase
from fedlora.runs.rounds import BelowQuorum


@dataclass
class Times:
    monotonic: float = 1000.0
    wall: float = 1_700_000_000.0


class Observer:
    def committed(self, state, events, reports) -> None:
        pass


def training() -> RunState:
    """A run in its first round, at 6 s of its clock; the round may train for a minute."""
    driver = MachineDriver(run_spec(below_quorum=BelowQuorum.FAIL))
    driver.start_training("a", "b")
    assert (driver.state.layout, driver.state.phase) == (LAYOUT, RunPhase.TRAINING)
    return driver.state


def actor_of(
    state: RunState, clock: float, times: Times, folder: Path
) -> tuple[RunActor, ThreadedStore]:
    store = ThreadedStore(InMemoryStateStore)
    actor = RunActor(
        state,
        clock_base=clock,
        store=store,
        engine=AggregationEngine(BlobStore(folder), device="cpu"),
        observer=Observer(),
        worker_timeout_seconds=1e9,
        disk=DiskWatch(lambda: None),
        telemetry=Silent(),
        monotonic=lambda: times.monotonic,
        wall=lambda: times.wall,
    )
    return actor, store


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_a_jump_of_the_wall_clock_closes_and_reopens_nothing(tmp_path: Path, jump: float):
    times, state = Times(), training()
    assert state.deadline is not None
    actor, store = actor_of(state, state.phase_started, times, tmp_path)
    times.wall += jump
    times.monotonic += 59.0
    await actor.apply(DeadlineChecked())
    assert actor.state.phase is RunPhase.TRAINING
    times.monotonic += 1.0
    await actor.apply(DeadlineChecked())
    assert actor.state.phase is RunPhase.FAILED, "its own minute is over"
    times.wall -= 2 * jump
    assert actor.state.phase is RunPhase.FAILED
    await actor.close()
    store.close()


async def test_a_driven_run_sleeps_until_its_own_deadline(tmp_path: Path):
    times, state = Times(), training()
    actor, store = actor_of(state, state.phase_started, times, tmp_path)
    actor.start()
    times.wall += 86_400.0
    actor.wake()
    await asyncio.sleep(0)
    assert actor.state.phase is RunPhase.TRAINING
    times.monotonic += 60.0
    actor.wake()
    while not actor.state.phase.is_final:
        await actor.wait_for_change(10.0)
    assert actor.state.phase is RunPhase.FAILED
    await actor.close()
    store.close()


async def test_a_server_that_was_away_gives_the_round_the_time_that_was_left(tmp_path: Path):
    state = training()
    assert state.deadline is not None
    store = InMemoryStateStore()
    # Stored 20 s into the minute; the next server starts a day later, on another machine.
    store.commit(Transaction(state=state, clock=state.phase_started + 20.0))
    ((again, clock),) = store.load_runs()
    times = Times(monotonic=5.0, wall=1_800_000_000.0)
    actor, threaded = actor_of(again, clock, times, tmp_path)
    assert actor.now() == pytest.approx(state.deadline - 40.0)
    times.monotonic += 39.0
    await actor.apply(DeadlineChecked())
    assert actor.state.phase is RunPhase.TRAINING
    times.monotonic += 1.0
    await actor.apply(DeadlineChecked())
    assert actor.state.phase is RunPhase.FAILED
    await actor.close()
    threaded.close()


def test_a_clock_counts_from_its_base():
    now = 7.0
    clock = RunClock(100.0, lambda: now)
    now = 9.5
    assert clock.now() == 102.5
