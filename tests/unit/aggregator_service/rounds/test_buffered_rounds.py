"""Rounds that close with a number of updates, whichever version they began from."""

from __future__ import annotations

import pytest
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.assignment import task_for
from aggregator_service.rounds.events import DeadlineChecked, EvaluationReported, WorkerLost
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.rounds import LateUpdates, RoundEngine, RoundRules, Sampling
from fedlora.runs.tasks import TaskKind

FOUR = ("a", "b", "c", "d")


def buffered(**rules: object) -> MachineDriver:
    rules = {
        "engine": RoundEngine.BUFFERED,
        "buffer_size": 2,
        "quorum": 1,
        "evaluate": False,
        **rules,
    }
    driver = MachineDriver(run_spec(num_workers=4, num_rounds=9, **rules))
    driver.start_training(*FOUR)
    return driver


def in_hand(driver: MachineDriver) -> dict[str, int]:
    return {name: task.base_version for name, task in driver.state.assigned.items()}


def test_a_buffer_closes_when_it_is_full_and_the_others_train_on():
    driver = buffered()
    assert in_hand(driver) == dict.fromkeys(FOUR, 0)
    driver.commit("a")
    assert driver.state.phase is RunPhase.TRAINING
    assert task_for(driver.state, "a", 0).kind is TaskKind.WAIT, "it counts once in a buffer"
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING
    assert in_hand(driver) == {"c": 0, "d": 0}
    driver.aggregated()
    assert (driver.state.round, driver.state.version) == (2, 1)
    assert in_hand(driver) == {"a": 1, "b": 1, "c": 0, "d": 0}
    (late,) = driver.commit("c", round=1).updates
    assert (late.round, late.staleness, late.base_version) == (2, 1, 1 - 0)
    (fresh,) = driver.commit("a", round=2).updates
    assert (fresh.round, fresh.staleness) == (2, 0)
    assert driver.state.phase is RunPhase.AGGREGATING


@pytest.mark.parametrize(
    "engine", [{"engine": RoundEngine.ASYNC, "buffer_size": 0}, {"buffer_size": 1}]
)
def test_a_worker_without_examples_ends_no_run_of_others_that_have_some(engine: dict[str, object]):
    driver = buffered(**engine)
    driver.commit("a", num_examples=0)
    assert driver.state.phase is RunPhase.TRAINING
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING
    assert driver.state.updates.keys() == {"a", "b"}


def test_updates_that_come_while_a_version_is_made_fill_the_next_buffer_and_may_close_it():
    driver = buffered()
    driver.commit("a")
    driver.commit("b")
    driver.commit("c", round=1)
    driver.commit("d", round=1)
    assert driver.state.carried.keys() == {"c", "d"}
    driver.aggregated()
    assert (driver.state.round, driver.state.phase) == (2, RunPhase.AGGREGATING)
    assert driver.state.updates.keys() == {"c", "d"}
    assert in_hand(driver) == {"a": 1, "b": 1}


def test_no_more_workers_train_at_a_time_than_the_run_allows():
    driver = buffered(concurrency=2, sampling=Sampling.BY_EXAMPLES)
    assert len(in_hand(driver)) == 2
    first, second = in_hand(driver)
    driver.commit(first)
    assert len(in_hand(driver)) == 2
    driver.feed(WorkerLost(second))
    alive = [n for n in in_hand(driver) if n != second]
    assert len(alive) == 2, "a lost worker takes nobody's place"


def test_a_buffer_that_does_not_fill_is_flushed_at_the_deadline():
    driver = buffered()
    driver.commit("a")
    driver.feed(DeadlineChecked(), after=61)
    assert driver.state.phase is RunPhase.AGGREGATING
    assert driver.state.updates.keys() == {"a"}


def test_a_very_late_update_is_dropped_and_its_worker_begins_anew():
    driver = buffered(max_staleness=1)
    for round in (1, 2):
        driver.commit("a", round=round)
        driver.commit("b", round=round)
        driver.aggregated()
    assert in_hand(driver) == dict.fromkeys(FOUR, 2)
    with pytest.raises(FedLoraError) as caught:
        driver.commit("c", round=1)
    assert caught.value.reason is Reason.WRONG_ROUND


def test_only_workers_that_are_free_score_a_version():
    driver = buffered(evaluate=True, evaluate_every=2)
    driver.commit("a")
    driver.commit("b")
    driver.aggregated()
    assert driver.state.phase is RunPhase.TRAINING, "not due"
    driver.commit("a", round=2)
    driver.commit("b", round=2)
    driver.aggregated()
    assert (driver.state.phase, driver.state.evaluators) == (RunPhase.EVALUATING, ("a", "b"))
    driver.commit("c", round=1)
    for name in ("a", "b"):
        driver.feed(EvaluationReported(name, ()))
    assert (driver.state.round, driver.state.updates.keys()) == (3, {"c"})


def test_the_asynchronous_engine_closes_with_every_update():
    driver = buffered(engine=RoundEngine.ASYNC, buffer_size=0)
    driver.commit("c")
    assert driver.state.phase is RunPhase.AGGREGATING
    driver.aggregated()
    assert in_hand(driver) == {"a": 0, "b": 0, "c": 1, "d": 0}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"engine": RoundEngine.BUFFERED}, "buffer_size must lie between 1 and min_workers"),
        ({"engine": RoundEngine.BUFFERED, "buffer_size": 3}, "counts once in a buffer"),
        ({"engine": RoundEngine.BUFFERED, "buffer_size": 1}, "only 1 updates"),
        ({"engine": RoundEngine.ASYNC}, "only 1 updates"),
        ({"engine": RoundEngine.ASYNC, "quorum": 1, "buffer_size": 2}, "has one of 1"),
        (
            {"engine": RoundEngine.BUFFERED, "buffer_size": 2, "concurrency": 1},
            "would never fill",
        ),
        ({"engine": RoundEngine.ASYNC, "quorum": 1, "cohort_size": 2}, "no cohorts"),
        ({"buffer_size": 2}, "wait for their cohort"),
        ({"over_selection": 0.3}, "needs a cohort_size"),
        ({"sampling": Sampling.BY_EXAMPLES}, "all ready workers are taken"),
        ({"late_updates": LateUpdates.CARRY, "max_staleness": 0}, "no late update could count"),
        ({"mixing": 0.0}, r"must lie in \(0, 1\]"),
        ({"staleness_exponent": -1.0}, "must not be negative"),
    ],
)
def test_rules_that_cannot_work_are_refused_with_the_way_out(rules: dict, words: str):
    with pytest.raises(FedLoraError, match=words) as caught:
        RoundRules(**rules)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
