"""Metrics of runs: what they say, and that there are never more of them than there should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from prometheus_client import CollectorRegistry
from support.runs import MachineDriver, run_spec
from support.sample_run import sample_certificate, sample_round

from aggregator_service.metrics.rounds import RoundTallies
from aggregator_service.metrics.runs import RunCollector
from aggregator_service.rounds.events import RunStopped, WorkerLost
from aggregator_service.rounds.history import as_events, certificate_ready
from aggregator_service.rounds.state import RunState
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType, RoundReport, RunEvent


@dataclass
class Watched:
    """A run of a test."""

    state: RunState
    clock: float = 0.0

    def now(self) -> float:
        return self.clock


def collected(*runs: Watched, tallies: RoundTallies | None = None) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RunCollector(lambda: runs, tallies or RoundTallies()))
    return registry


def labels_in(registry: CollectorRegistry, label: str) -> set[str]:
    samples = (sample for family in registry.collect() for sample in family.samples)
    return {sample.labels[label] for sample in samples if label in sample.labels}


def training(name: str = "r") -> RunState:
    driver = MachineDriver(run_spec(name))
    driver.start_training("a", "b")
    return driver.state


def ended(name: str, created_at: float = 0.0) -> RunState:
    state = replace(training(name), phase=RunPhase.COMPLETED)
    return replace(state, run_id=f"id-{name}", created_at=created_at)


def event(type_: EventType, round: int, sequence: int = 1) -> RunEvent:
    return RunEvent(sequence=sequence, type=type_, time=0.0, round=round)


def ready(report: RoundReport) -> Sequence[RunEvent]:
    assert report.certificate is not None
    fact = certificate_ready(report.round, report.certificate)
    return as_events((fact,), after=0, time=0.0)


def told(*steps: tuple[Sequence[RunEvent], Sequence[RoundReport]]) -> tuple[RunState, RoundTallies]:
    state, tallies = training(), RoundTallies()
    for events, reports in steps:
        tallies.committed(state, events, reports)
    return state, tallies


def test_a_run_shows_its_phase_and_for_how_long():
    state = training()
    registry = collected(Watched(state, clock=state.phase_started + 12.5))
    phase = {"run": "r", "phase": "training"}
    assert registry.get_sample_value("fedlora_run_phase", phase) == 1
    assert registry.get_sample_value("fedlora_run_phase_age_seconds", phase) == 12.5
    assert registry.get_sample_value("fedlora_run_cohort_workers", {"run": "r"}) == 2


def test_workers_are_counted_by_state_and_shown_by_name():
    driver = MachineDriver(run_spec("r"))
    driver.start_training("a", "b")
    driver.feed(WorkerLost("b"))
    registry = collected(Watched(driver.state))
    for state, count in {"ready": 1, "lost": 1, "joining": 0, "left": 0}.items():
        labels = {"run": "r", "state": state}
        assert registry.get_sample_value("fedlora_run_workers", labels) == count
    for worker, there in {"a": 1, "b": 0}.items():
        labels = {"run": "r", "worker": worker}
        assert registry.get_sample_value("fedlora_run_worker_connected", labels) == there


def test_workers_of_a_run_that_has_ended_are_not_shown():
    driver = MachineDriver(run_spec("r"))
    driver.start_training("a", "b")
    driver.feed(RunStopped("enough"))
    registry = collected(Watched(driver.state))
    assert labels_in(registry, "worker") == set()
    stopped = {"run": "r", "phase": "stopped"}
    assert registry.get_sample_value("fedlora_run_phase", stopped) == 1


def test_of_runs_that_have_ended_only_the_last_are_shown_and_all_that_are_open():
    old = [Watched(ended(f"old-{i:02}")) for i in range(25)]
    registry = collected(*old, Watched(training("open")))
    assert labels_in(registry, "run") == {"open", *(f"old-{i:02}" for i in range(15, 25))}


def test_a_run_that_is_not_there_any_more_is_not_shown():
    runs = [Watched(training("one")), Watched(training("two"))]
    registry = CollectorRegistry()
    registry.register(RunCollector(lambda: runs, RoundTallies()))
    assert labels_in(registry, "run") == {"one", "two"}
    del runs[0]
    assert labels_in(registry, "run") == {"two"}


def test_a_score_that_a_worker_has_invented_is_no_label():
    report = replace(
        sample_round(1), metrics={"test_accuracy": 0.5, "test_x1": 1.0, "held_out_loss": 2.0}
    )
    state, tallies = told(([event(EventType.ROUND_COMPLETED, 1)], [report]))
    registry = collected(Watched(state), tallies=tallies)
    assert labels_in(registry, "score") == {"test_accuracy", "held_out_loss"}


def test_times_of_rounds_and_phases_add_up():
    reports = [
        replace(sample_round(round), phase_seconds={"training": 10.0 * round, "aggregating": 1.0})
        for round in (1, 2)
    ]
    state, tallies = told(
        *(([event(EventType.ROUND_COMPLETED, report.round)], [report]) for report in reports)
    )
    registry = collected(Watched(state), tallies=tallies)
    run = {"run": "r"}
    assert registry.get_sample_value("fedlora_round_duration_seconds_count", run) == 2
    assert registry.get_sample_value("fedlora_round_duration_seconds_sum", run) == 32
    training_phase = {"run": "r", "phase": "training"}
    assert registry.get_sample_value("fedlora_phase_duration_seconds_sum", training_phase) == 30
    completed = {"run": "r", "type": "round_completed"}
    assert registry.get_sample_value("fedlora_run_events_total", completed) == 2


def test_a_certificate_that_comes_after_the_next_round_is_its_own_rounds():
    bare = sample_round(2, certified=False)
    late = replace(sample_round(1), certificate=sample_certificate(1))
    state, tallies = told(
        ([event(EventType.ROUND_COMPLETED, 2)], [bare]),
        (ready(late), [late]),
    )
    registry = collected(Watched(state), tallies=tallies)
    run = {"run": "r"}
    error = late.certificate.overall.relative_error
    assert registry.get_sample_value("fedlora_certificate_round", run) == 1
    assert registry.get_sample_value("fedlora_certificate_relative_error_ratio", run) == error
    assert registry.get_sample_value("fedlora_round_duration_seconds_count", run) == 1
    up = {"run": "r", "direction": "up"}
    assert registry.get_sample_value("fedlora_round_payload_bytes", up) == bare.bytes_up


def test_a_certificate_that_is_ready_while_its_round_is_evaluated_is_counted():
    report = sample_round(1)
    state, tallies = told((ready(report), []), ([event(EventType.ROUND_COMPLETED, 1)], [report]))
    registry = collected(Watched(state), tallies=tallies)
    run = {"run": "r"}
    seconds = sample_certificate(1).seconds
    assert registry.get_sample_value("fedlora_certificate_duration_seconds_count", run) == 1
    assert registry.get_sample_value("fedlora_certificate_duration_seconds_sum", run) == seconds
    assert registry.get_sample_value("fedlora_certificate_round", run) == 1
    of_type = {"run": "r", "type": "certificate_ready"}
    assert registry.get_sample_value("fedlora_run_events_total", of_type) == 1


def test_the_training_loss_weighs_workers_by_their_examples():
    report = sample_round(1)
    losses = {"worker-0": 1.0, "worker-1": 3.0}
    updates = tuple(
        replace(u, num_examples=30 if u.worker == "worker-0" else 10, metrics={"train_loss": x})
        for u in report.updates
        if (x := losses.get(u.worker)) is not None
    )
    state, tallies = told(
        ([event(EventType.ROUND_COMPLETED, 1)], [replace(report, updates=updates)])
    )
    registry = collected(Watched(state), tallies=tallies)
    loss = registry.get_sample_value("fedlora_train_loss", {"run": "r"})
    assert loss == pytest.approx((30 * 1.0 + 10 * 3.0) / 40)


def test_a_restarted_server_shows_the_last_round_and_counts_anew():
    state, tallies = training(), RoundTallies()
    tallies.restore(state.run_id, sample_round(3))
    registry = collected(Watched(state), tallies=tallies)
    assert registry.get_sample_value("fedlora_certificate_round", {"run": "r"}) == 3
    assert registry.get_sample_value("fedlora_round_duration_seconds_count", {"run": "r"}) == 0
