"""An open round with work to be done lets no worker idle that it needs."""

from __future__ import annotations

import pytest
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.assignment import task_for
from aggregator_service.rounds.events import WorkerLeft, WorkerLost
from aggregator_service.rounds.state import RunState
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType
from fedlora.runs.rounds import Sampling
from fedlora.runs.tasks import Role, TaskKind


def kind(driver: MachineDriver, worker: str) -> TaskKind:
    return task_for(driver.state, worker, driver.now).kind


def reassigned(driver: MachineDriver) -> list[tuple[str, object]]:
    facts = [f for t in driver.transitions for f in t.facts]
    return [(f.worker, f.detail["from"]) for f in facts if f.type is EventType.TASK_REASSIGNED]


def test_a_worker_that_left_and_returns_gets_its_task_again():
    driver = MachineDriver(run_spec(num_workers=2, quorum=2))
    driver.start_training("a", "b")
    driver.commit("a")
    driver.feed(WorkerLeft("b", "stopped by SIGTERM"))
    assert driver.state.phase is RunPhase.TRAINING
    driver.join("b")
    assert kind(driver, "b") is TaskKind.TRAIN
    assert kind(driver, "a") is TaskKind.WAIT
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING
    assert reassigned(driver) == [], "it is nobody else's place"


def test_all_that_left_and_return_finish_the_round():
    driver = MachineDriver(run_spec(num_workers=2, quorum=2))
    driver.start_training("a", "b")
    driver.commit("b")
    for name in ("a", "b"):
        driver.feed(WorkerLeft(name, "stopped by SIGTERM"))
    driver.join("a", "b", "c")
    assert [kind(driver, n) for n in ("a", "b", "c")] == [
        TaskKind.TRAIN,
        TaskKind.WAIT,
        TaskKind.WAIT,
    ]
    driver.commit("a")
    assert driver.state.phase is RunPhase.AGGREGATING


@pytest.mark.parametrize("gone", [WorkerLeft("a", "bye"), WorkerLost("a")])
def test_a_newcomer_takes_a_place_without_which_there_is_no_quorum(gone):
    driver = MachineDriver(run_spec(num_workers=2, quorum=2))
    driver.start_training("a", "b")
    driver.feed(gone)
    driver.join("c", "d")
    assert {n: kind(driver, n) for n in "bcd"} == {
        "b": TaskKind.TRAIN,
        "c": TaskKind.TRAIN,
        "d": TaskKind.WAIT,
    }
    assert reassigned(driver) == [("c", "a")]


def test_where_the_quorum_can_be_reached_nobody_else_is_asked():
    driver = MachineDriver(run_spec(num_workers=3, quorum=2))
    driver.start_training("a", "b", "c")
    driver.feed(WorkerLeft("c", "bye"))
    driver.join("d")
    assert kind(driver, "d") is TaskKind.WAIT
    assert driver.state.cohort == ("a", "b", "c")


def test_a_sampled_cohort_takes_a_ready_worker_at_once():
    driver = MachineDriver(
        run_spec(num_workers=4, quorum=2, cohort_size=2, sampling=Sampling.UNIFORM)
    )
    driver.start_training("a", "b", "c", "d")
    (first, second) = driver.state.cohort
    driver.feed(WorkerLeft(first, "bye"))
    ((stand_in, place),) = reassigned(driver)
    assert place == first
    assert stand_in not in (first, second)
    assert kind(driver, stand_in) is TaskKind.TRAIN


def test_an_update_goes_through_its_cohort_and_not_through_all_who_wait(
    monkeypatch: pytest.MonkeyPatch,
):
    driver = MachineDriver(run_spec(num_workers=200, cohort_size=5, quorum=5, num_rounds=1))
    driver.start_training(*(f"w-{i:03d}" for i in range(200)))
    looked_at: set[str] = set()
    is_ready = RunState.is_ready

    def counted(state: RunState, worker: str, role: Role = Role.PARTY) -> bool:
        looked_at.add(worker)
        return is_ready(state, worker, role)

    monkeypatch.setattr(RunState, "is_ready", counted)
    driver.commit(driver.state.cohort[0])
    assert looked_at <= {*driver.state.cohort}
