"""Rounds on a virtual clock, with workers that die, lag and come back."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.assignment import directive_for, task_for
from aggregator_service.rounds.events import (
    Aggregate,
    DeadlineChecked,
    EvaluationReported,
    WorkerLeft,
    WorkerLost,
    WorkerReturned,
)
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType
from fedlora.runs.rounds import BelowQuorum, LateUpdates, RoundEngine, Sampling
from fedlora.runs.tasks import Directive, TaskKind

EIGHT = tuple(f"w-{i}" for i in range(8))


def facts(driver: MachineDriver, kind: EventType) -> list:
    return [f for t in driver.transitions for f in t.facts if f.type is kind]


def finish(driver: MachineDriver) -> None:
    """From AGGREGATING to the next round."""
    driver.aggregated()
    for worker in driver.state.evaluators:
        driver.feed(EvaluationReported(worker, ()), after=0)


# --- quorum and deadline -----------------------------------------------------------------


@pytest.mark.parametrize("below", BelowQuorum)
@pytest.mark.parametrize("killed", range(9))
def test_a_round_closes_as_soon_as_its_rule_is_met_however_many_die(
    killed: int, below: BelowQuorum
):
    driver = MachineDriver(run_spec(num_workers=8, quorum=5, below_quorum=below, evaluate=False))
    driver.start_training(*EIGHT)
    begun = driver.now
    for name in EIGHT[killed:]:
        driver.commit(name)
    # As the actor does: silence is noticed, then the deadline comes.
    for name in EIGHT[:killed]:
        driver.feed(WorkerLost(name))
    if killed <= 3:
        assert driver.state.phase is RunPhase.AGGREGATING
        return
    assert driver.state.phase is RunPhase.TRAINING
    driver.feed(DeadlineChecked(), after=begun + 60.0 - driver.now)
    if below is BelowQuorum.FAIL:
        assert driver.state.phase is RunPhase.FAILED
        assert driver.state.reason == f"round 1: {8 - killed} of 5 updates needed after 60 s"
        return
    assert driver.state.deadline == driver.now + 60.0
    (extended,) = facts(driver, EventType.DEADLINE_EXTENDED)
    assert extended.detail["reason"] == f"round 1: {8 - killed} of 5 updates needed after 60 s"
    for name in EIGHT[: killed - 3]:
        driver.feed(WorkerReturned(name), after=0)
        driver.commit(name, num_examples=1)
    assert driver.state.phase is RunPhase.AGGREGATING, "the moment the quorum is there"


def test_a_round_is_extended_only_as_often_as_the_run_allows():
    driver = MachineDriver(run_spec(max_extensions=2))
    driver.start_training("a", "b")
    for _ in range(2):
        driver.feed(DeadlineChecked(), after=61)
        assert driver.state.phase is RunPhase.TRAINING
    driver.feed(DeadlineChecked(), after=61)
    assert driver.state.phase is RunPhase.FAILED
    assert "extended 2 times" in driver.state.reason


def test_a_run_does_not_wait_for_ever_for_a_worker_that_is_gone_between_rounds():
    driver = MachineDriver(run_spec(num_workers=3, quorum=2, evaluate=False))
    driver.start_training("a", "b", "c")
    driver.commit("a")
    driver.commit("b")
    driver.feed(WorkerLeft("c", "dead"))
    finish(driver)
    assert driver.state.phase is RunPhase.WAITING
    driver.feed(DeadlineChecked(), after=30)
    assert driver.state.phase is RunPhase.WAITING
    driver.feed(DeadlineChecked(), after=31)
    assert (driver.state.phase, driver.state.round) == (RunPhase.TRAINING, 2)
    assert driver.state.cohort == ("a", "b")


def test_a_run_without_a_quorum_between_rounds_says_so_each_time():
    driver = MachineDriver(run_spec(evaluate=False, max_extensions=1))
    driver.start_training("a", "b")
    driver.commit("a")
    driver.commit("b")
    driver.feed(WorkerLost("b"))
    finish(driver)
    driver.feed(DeadlineChecked(), after=61)
    (extended,) = facts(driver, EventType.DEADLINE_EXTENDED)
    assert extended.detail["reason"] == "after round 1: 1 of 2 workers needed after 60 s"
    driver.feed(DeadlineChecked(), after=61)
    assert driver.state.phase is RunPhase.FAILED


# --- over-selection and replacement ------------------------------------------------------


def test_over_selection_asks_more_and_takes_the_first():
    spec = run_spec(num_workers=8, quorum=2, cohort_size=4, over_selection=0.3)
    driver = MachineDriver(spec)
    driver.start_training(*EIGHT)
    cohort = driver.state.cohort
    assert len(cohort) == 6, "4 x 1.3, rounded up"
    for name in cohort[:3]:
        driver.commit(name)
    assert driver.state.phase is RunPhase.TRAINING
    closing = driver.commit(cohort[3])
    assert closing.effects == (Aggregate(1),)
    slow = cohort[4]
    assert directive_for(driver.state, slow, "run-1/1/train/" + slow, 0) is Directive.ABANDON_TASK


def test_a_lost_workers_place_is_given_to_another_at_once():
    driver = MachineDriver(run_spec(num_workers=8, quorum=4, cohort_size=4))
    driver.start_training(*EIGHT)
    lost = driver.state.cohort[0]
    driver.feed(WorkerLost(lost))
    (moved,) = facts(driver, EventType.TASK_REASSIGNED)
    other = moved.worker
    assert moved.detail == {"from": lost}
    assert other not in driver.transitions[-2].state.cohort
    assert task_for(driver.state, other, driver.now).kind is TaskKind.TRAIN
    for name in {*driver.state.cohort} - {lost}:
        driver.commit(name)
    assert driver.state.phase is RunPhase.AGGREGATING, "nobody waits for the lost one"


def test_participation_is_counted():
    driver = MachineDriver(run_spec(num_workers=8, quorum=2, cohort_size=2, evaluate=False))
    driver.start_training(*EIGHT)
    first = driver.state.cohort
    for name in first:
        driver.commit(name)
    finish(driver)
    asked = {n: w.num_tasks for n, w in driver.state.workers.items()}
    assert sum(asked.values()) == 4
    assert all(asked[n] >= 1 for n in (*first, *driver.state.cohort))
    assert sum(w.num_updates for w in driver.state.workers.values()) == 2


# --- late updates ------------------------------------------------------------------------


def late_run(policy: LateUpdates, **rules: object) -> MachineDriver:
    """A run whose first round has closed without the worker c."""
    rules = {"quorum": 2, "late_updates": policy, "evaluate": False, **rules}
    driver = MachineDriver(run_spec(num_workers=3, num_rounds=4, **rules))
    driver.start_training("a", "b", "c")
    driver.commit("a")
    driver.commit("b")
    driver.feed(DeadlineChecked(), after=61)
    assert driver.state.phase is RunPhase.AGGREGATING
    return driver


def test_a_dropped_late_update_has_no_effect():
    driver = late_run(LateUpdates.DROP)
    for move_on in (lambda: finish(driver), lambda: None):
        before = driver.state
        with pytest.raises(FedLoraError) as caught:
            driver.commit("c", round=1)
        assert caught.value.reason is Reason.WRONG_ROUND
        assert driver.state is before
        move_on()
    assert driver.state.cohort == ("a", "b", "c"), "it is asked again"


def test_a_carried_update_counts_once_and_in_the_next_round_only():
    driver = late_run(LateUpdates.CARRY)
    closed = driver.state.updates
    task = task_for(driver.state, "c", driver.now)
    assert (task.kind, task.round, task.adapter_version) == (TaskKind.TRAIN, 1, 0)
    late = driver.commit("c", round=1)
    assert driver.state.updates == closed, "the closed round stays as it was"
    assert [(u.round, u.staleness) for u in late.updates] == [(2, 1)]
    finish(driver)
    assert (driver.state.round, driver.state.cohort) == (2, ("a", "b"))
    assert driver.state.updates.keys() == {"c"}
    with pytest.raises(FedLoraError):
        driver.commit("c", round=1)
    driver.commit("a")
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING
    assert driver.state.updates.keys() == {"a", "b", "c"}
    finish(driver)
    assert (driver.state.updates, driver.state.cohort) == ({}, ("a", "b", "c"))
    (report,) = [r for t in driver.transitions for r in t.reports if r.round == 2]
    assert [(u.worker, u.staleness) for u in report.updates] == [("a", 0), ("b", 0), ("c", 1)]


def test_a_late_update_counts_in_the_round_that_is_open_when_it_comes():
    driver = late_run(LateUpdates.CARRY)
    finish(driver)
    assert driver.state.cohort == ("a", "b"), "c still trains for round 1"
    (update,) = driver.commit("c", round=1).updates
    assert (update.round, update.staleness) == (2, 1)


def test_an_update_that_is_too_late_is_dropped_and_the_worker_asked_again():
    driver = late_run(LateUpdates.CARRY, max_staleness=1)
    finish(driver)
    driver.commit("a")
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING, "nobody waits for it"
    with pytest.raises(FedLoraError):
        driver.commit("c", round=1)
    finish(driver)
    assert driver.state.cohort == ("a", "b", "c")


def test_nothing_is_promised_once_the_last_round_has_closed():
    driver = MachineDriver(
        run_spec(num_workers=3, num_rounds=1, quorum=2, late_updates=LateUpdates.CARRY)
    )
    driver.start_training("a", "b", "c")
    driver.commit("a")
    driver.commit("b")
    driver.feed(DeadlineChecked(), after=61)
    assert driver.state.assigned == {}
    assert directive_for(driver.state, "c", "run-1/1/train/c", 0) is Directive.ABANDON_TASK


def race(seed: int) -> tuple[object, ...]:
    """Eight uploads, the deadline and the end of the aggregation, in an order with a late upload.

    Some deadlines pass below the quorum of 3 before the one that closes the round.
    """
    draw = random.Random(seed)
    order: list[object] = draw.sample(EIGHT, len(EIGHT))
    closes = draw.randrange(3, len(EIGHT))
    order.insert(closes, "deadline")
    order.insert(draw.randrange(closes + 1, len(order) + 1), "aggregated")
    for _ in range(draw.randrange(3)):
        order.insert(draw.randrange(3), "deadline")
    return tuple(order)


@pytest.mark.parametrize("policy", LateUpdates)
@pytest.mark.parametrize("seed", range(100))
def test_whoever_comes_around_the_close_counts_once_and_the_closed_round_stays_as_it_was(
    seed: int, policy: LateUpdates
):
    """Eight uploads race the deadline: each is in the round, in the next, or nowhere."""
    driver = MachineDriver(
        run_spec(num_workers=8, num_rounds=3, quorum=3, late_updates=policy, evaluate=False)
    )
    driver.start_training(*EIGHT)
    counted: dict[str, int] = {}
    refused: set[str] = set()
    closed = None
    for item in race(seed):
        before = driver.state
        if item == "deadline":
            driver.feed(DeadlineChecked(), after=61)
        elif item == "aggregated":
            finish(driver)
        else:
            try:
                (update,) = driver.commit(str(item), round=1).updates
                counted[update.worker] = update.round
            except FedLoraError as error:
                assert error.reason is Reason.WRONG_ROUND  # noqa: PT017
                assert driver.state is before
                refused.add(str(item))
        if closed is None and driver.state.phase is not RunPhase.TRAINING:
            closed = frozenset(driver.state.updates)
            assert closed == {w for w, r in counted.items() if r == 1}
    assert closed is not None
    late = {*EIGHT} - closed
    assert late, "void: nobody was late"
    (report,) = [r for t in driver.transitions for r in t.reports]
    assert {u.worker for u in report.updates} == closed
    assert refused == (late if policy is LateUpdates.DROP else set())
    carried = {w for w, r in counted.items() if r == 2}
    assert carried == (late if policy is LateUpdates.CARRY else set())


# --- what never happens ------------------------------------------------------------------


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["commit", "lose", "return", "leave", "join", "tick", "work"]),
        st.sampled_from(EIGHT[:5]),
    ),
    max_size=80,
)

RULES = st.sampled_from(
    [
        {},
        {"late_updates": LateUpdates.CARRY},
        {"cohort_size": 3, "over_selection": 0.5},
        {"cohort_size": 3, "late_updates": LateUpdates.CARRY, "max_staleness": 2},
        {"engine": RoundEngine.BUFFERED, "buffer_size": 2},
        {
            "engine": RoundEngine.BUFFERED,
            "buffer_size": 2,
            "concurrency": 3,
            "max_staleness": 2,
            "sampling": Sampling.BY_EXAMPLES,
        },
        {"engine": RoundEngine.ASYNC, "quorum": 1},
    ]
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS, rules=RULES)
def test_whatever_happens_every_promise_is_kept_and_no_phase_is_without_an_end(actions, rules):
    driver = MachineDriver(run_spec(num_workers=3, num_rounds=5, **{"quorum": 2, **rules}))
    driver.start_training(*EIGHT[:5])
    counted: set[tuple[str, int]] = set()
    for action, name in actions:
        state, worker = driver.state, driver.state.workers[name]
        if state.phase.is_final:
            break
        if action == "commit" and (task := state.assigned.get(name)) and state.is_expected(name):
            (update,) = driver.commit(name, round=task.round).updates
            assert (name, update.round) not in counted, "counts twice in a round"
            counted.add((name, update.round))
            assert 0 <= update.staleness <= state.spec.rounds.max_staleness
        elif action == "lose" and state.is_expected(name):
            driver.feed(WorkerLost(name))
        elif action == "return":
            driver.feed(WorkerReturned(name))
        elif action == "leave":
            driver.feed(WorkerLeft(name, "bye"))
        elif action == "join" and worker.state.value != "ready":
            driver.join(name)
        elif action == "tick":
            driver.feed(DeadlineChecked(), after=61)
        elif action == "work" and state.phase is RunPhase.AGGREGATING:
            driver.aggregated()
        elif action == "work" and state.phase is RunPhase.EVALUATING:
            driver.feed(EvaluationReported(name, ()))
        state = driver.state
        if not state.phase.is_final and state.phase is not RunPhase.AGGREGATING:
            assert state.deadline is not None, f"{state.phase} could last for ever"
        assert not {*state.assigned} & {*state.updates}, "one update of a worker to a round"
    committed = [u for t in driver.transitions for u in t.updates if u.round]
    keys = [(u.worker, u.round) for u in committed]
    assert len(keys) == len(set(keys))
    for report in itertools.chain.from_iterable(t.reports for t in driver.transitions):
        assert {u.worker for u in report.updates} == {
            u.worker for u in committed if u.round == report.round
        }
