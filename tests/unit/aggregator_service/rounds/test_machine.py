from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.runs import LAYOUT, MachineDriver, run_spec

from aggregator_service.rounds.assignment import changed_parts, directive_for, task_for
from aggregator_service.rounds.events import (
    AdapterConfirmed,
    AdapterRefined,
    Aggregate,
    AggregationFailed,
    Certify,
    DeadlineChecked,
    EvaluationReported,
    Refine,
    RunStarted,
    RunStopped,
    UpdateCommitted,
    WorkerLeft,
    WorkerLost,
    WorkerRegistered,
    WorkerReturned,
)
from aggregator_service.rounds.machine import TABLE, pending_effects
from aggregator_service.rounds.manifests import check_update_manifest
from aggregator_service.rounds.state import AdapterRecord
from fedlora.adapters.names import Part
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.plan import RoundPlan, WorkerFeature
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.rounds import BelowQuorum
from fedlora.runs.tasks import (
    Capabilities,
    Directive,
    Evaluation,
    EvaluationScope,
    EvaluationSplit,
    Role,
    TaskKind,
)
from fedlora.tensors.manifest import DataType

GLOBAL_TEST = Evaluation(
    scope=EvaluationScope.GLOBAL,
    split=EvaluationSplit.TEST,
    num_examples=10,
    metrics={"accuracy": 0.5},
)


def facts(driver: MachineDriver) -> list[EventType]:
    return [f.type for t in driver.transitions for f in t.facts]


def test_a_run_goes_through_all_phases_to_completion():
    driver = MachineDriver(run_spec(num_rounds=2))
    phases = []
    driver.start_training("w-0", "w-1")
    for _ in range(2):
        phases.append(driver.state.phase)
        driver.commit("w-1")
        driver.commit("w-0")
        phases.append(driver.state.phase)
        driver.aggregated()
        phases.append(driver.state.phase)
        for worker in driver.state.evaluators:
            driver.feed(EvaluationReported(worker, (GLOBAL_TEST,)))
    assert phases == [RunPhase.TRAINING, RunPhase.AGGREGATING, RunPhase.EVALUATING] * 2
    assert driver.state.phase is RunPhase.COMPLETED
    assert driver.state.version == driver.state.round == 2
    reports = [r for t in driver.transitions for r in t.reports]
    assert [r.round for r in reports] == [1, 2]
    assert reports[0].metrics["test_accuracy"] == 0.5
    assert reports[0].phase_seconds.keys() == {"training", "aggregating", "evaluating"}
    assert sum(u.weight for u in reports[0].updates) == pytest.approx(1.0)


def test_the_initial_adapter_is_version_zero_and_comes_from_one_worker():
    driver = MachineDriver(run_spec())
    driver.feed(RunStarted())
    driver.join("w-1", "w-0")
    assert driver.state.phase is RunPhase.INITIALIZING
    assert driver.state.cohort == ("w-0",)
    assert task_for(driver.state, "w-0", 0).kind is TaskKind.INITIALIZE
    assert task_for(driver.state, "w-1", 0).kind is TaskKind.WAIT
    driver.commit("w-0", round=0)
    assert driver.state.version == 0
    assert driver.state.phase is RunPhase.TRAINING


def test_another_worker_initializes_when_the_first_one_leaves():
    driver = MachineDriver(run_spec())
    driver.feed(RunStarted())
    driver.join("w-0", "w-1")
    driver.feed(WorkerLeft("w-0", "bye"))
    assert driver.state.cohort == ("w-1",)
    driver.feed(WorkerLost("w-1"))
    assert driver.state.phase is RunPhase.WAITING
    driver.feed(WorkerReturned("w-1"))
    assert driver.state.phase is RunPhase.WAITING, "two workers are needed"


def test_a_round_closes_early_only_when_everybody_has_reported():
    driver = MachineDriver(run_spec(num_workers=3, quorum=2))
    driver.start_training("a", "b", "c")
    driver.commit("a")
    driver.commit("b")
    assert driver.state.phase is RunPhase.TRAINING
    closing = driver.commit("c")
    assert closing.effects == (Aggregate(1),)


def test_a_round_closes_at_its_deadline_with_a_quorum():
    driver = MachineDriver(run_spec(num_workers=3, quorum=2))
    driver.start_training("a", "b", "c")
    driver.commit("a")
    driver.commit("b")
    driver.feed(DeadlineChecked(), after=10)
    assert driver.state.phase is RunPhase.TRAINING
    closing = driver.feed(DeadlineChecked(), after=60)
    assert driver.state.phase is RunPhase.AGGREGATING
    closed = next(f for f in closing.facts if f.type is EventType.ROUND_CLOSED)
    assert closed.detail == {"updates": ["a", "b"], "missing": ["c"]}


def test_below_quorum_the_deadline_is_extended_and_newcomers_stand_in():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    driver.commit("a")
    driver.join("c")
    transition = driver.feed(DeadlineChecked(), after=60)
    assert driver.state.phase is RunPhase.TRAINING
    assert driver.state.cohort == ("a", "b", "c")
    assert transition.facts[0].type is EventType.DEADLINE_EXTENDED
    driver.commit("c")
    driver.feed(DeadlineChecked(), after=60)
    assert driver.state.phase is RunPhase.AGGREGATING


def test_below_quorum_the_run_fails_where_it_is_told_to():
    driver = MachineDriver(run_spec(below_quorum=BelowQuorum.FAIL))
    driver.start_training("a", "b")
    driver.feed(DeadlineChecked(), after=60)
    assert driver.state.phase is RunPhase.FAILED
    assert "0 of 2 updates" in driver.state.reason


@pytest.mark.parametrize("gone", [WorkerLost("c"), WorkerLeft("c", "shut down")])
def test_with_a_quorum_nobody_waits_for_a_worker_that_is_lost_or_has_left(gone):
    driver = MachineDriver(run_spec(num_workers=3, quorum=2))
    driver.start_training("a", "b", "c")
    driver.commit("a")
    driver.commit("b")
    assert driver.state.phase is RunPhase.TRAINING
    driver.feed(gone)
    assert driver.state.phase is RunPhase.AGGREGATING


def test_below_quorum_a_lost_worker_may_come_back_and_count():
    driver = MachineDriver(run_spec(num_workers=2, quorum=2))
    driver.start_training("a", "b")
    driver.commit("a")
    driver.feed(WorkerLost("b"))
    assert driver.state.phase is RunPhase.TRAINING
    driver.feed(WorkerReturned("b"))
    assert task_for(driver.state, "b", driver.now).kind is TaskKind.TRAIN
    driver.commit("b")
    assert driver.state.phase is RunPhase.AGGREGATING


def test_a_lost_worker_has_its_task_before_its_return_is_stored():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    task = task_for(driver.state, "b", driver.now)
    driver.feed(WorkerLost("b"))
    assert task_for(driver.state, "b", driver.now).task_id == task.task_id
    assert directive_for(driver.state, "b", task.task_id, driver.now) is Directive.CONTINUE
    # One that begins anew has to confirm first.
    driver.feed(WorkerLost("a"))
    driver.feed(
        WorkerRegistered(
            name="a",
            instance_id="another",
            session_hash="another",
            capabilities=Capabilities(),
            takes_mixed_ranks=True,
        )
    )
    driver.feed(WorkerLost("a"))
    assert task_for(driver.state, "a", driver.now).kind is TaskKind.WAIT


def test_a_second_update_of_a_worker_or_one_of_another_round_changes_nothing():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    driver.commit("a")
    before = driver.state
    for worker, round in (("a", 1), ("b", 2), ("b", 0), ("stranger", 1)):
        with pytest.raises(FedLoraError) as caught:
            driver.commit(worker, round=round)
        assert caught.value.reason is Reason.WRONG_ROUND
        assert driver.state is before


def test_every_event_outside_its_phases_is_refused_and_changes_nothing():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    events = {
        RunStarted: RunStarted(),
        RunStopped: RunStopped("x"),
        AdapterConfirmed: AdapterConfirmed("a", LAYOUT),
        WorkerLost: WorkerLost("a"),
        WorkerReturned: WorkerReturned("a"),
        WorkerLeft: WorkerLeft("a", ""),
        EvaluationReported: EvaluationReported("a", ()),
        AggregationFailed: AggregationFailed("x"),
        DeadlineChecked: DeadlineChecked(),
    }
    refused = 0
    for phase in RunPhase:
        for kind, event in events.items():
            if phase in TABLE[kind]:
                continue
            other = MachineDriver(run_spec())
            other.state = before = replace(driver.state, phase=phase)
            with pytest.raises(FedLoraError) as caught:
                other.feed(event)
            assert caught.value.reason is Reason.WRONG_PHASE
            assert other.state is before
            refused += 1
    assert refused == 32


def test_a_fenced_worker_keeps_its_slot_and_its_place_in_the_round():
    driver = MachineDriver(run_spec(slots=2))
    driver.start_training("w-1", "w-0")
    slots = {n: w.slot for n, w in driver.state.workers.items()}
    assert slots == {"w-0": 0, "w-1": 1}
    task = task_for(driver.state, "w-1", 0)
    driver.join("w-1")
    again = task_for(driver.state, "w-1", 0)
    assert driver.state.workers["w-1"].epoch == 2
    assert driver.state.workers["w-1"].slot == 1
    assert (again.task_id, again.seed, again.kind) == (task.task_id, task.seed, TaskKind.TRAIN)


def test_a_restarted_worker_that_has_submitted_gets_no_second_task():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    driver.commit("a")
    driver.join("a")
    assert task_for(driver.state, "a", 0).kind is TaskKind.WAIT


def test_slots_of_the_gone_are_leased_again_and_those_of_the_living_are_not():
    driver = MachineDriver(run_spec(slots=2))
    driver.start_training("x", "y")
    with pytest.raises(FedLoraError) as caught:
        driver.join("z")
    assert caught.value.reason is Reason.NO_FREE_SLOT
    driver.feed(WorkerLost("y"))
    driver.join("z")
    assert driver.state.workers["z"].slot == 1
    assert driver.state.workers["y"].slot is None


def test_a_lost_worker_whose_slot_is_leased_again_does_not_train_on_that_data_when_it_returns():
    driver = MachineDriver(run_spec(slots=2))
    driver.start_training("x", "y")
    driver.feed(WorkerLost("y"))
    driver.join("z")
    assert (driver.state.workers["z"].slot, {*driver.state.assigned}) == (1, {"x", "z"})
    assert task_for(driver.state, "y", driver.now).kind is TaskKind.WAIT
    driver.feed(WorkerReturned("y"))
    # Its next call tells it to register again, as one that has not confirmed.
    assert (driver.state.workers["y"].state, driver.state.workers["y"].confirmed) == (
        WorkerState.JOINING,
        False,
    )
    with pytest.raises(FedLoraError) as caught:
        driver.join("y")
    assert caught.value.reason is Reason.NO_FREE_SLOT
    driver.commit("x")
    driver.commit("z")
    assert driver.state.phase is RunPhase.AGGREGATING, "nobody waits for the one without data"


def test_a_worker_gets_the_slot_it_prefers_over_its_names_number_unless_that_is_leased():
    driver = MachineDriver(run_spec(slots=4))
    for name, preferred in [("w-0", 2), ("gpu-11", 3), ("w-2", None), ("w-1", 3)]:
        driver.join(name, preferred_data_slot=preferred)
    slots = {name: worker.slot for name, worker in driver.state.workers.items()}
    assert slots == {"w-0": 2, "gpu-11": 3, "w-2": 0, "w-1": 1}


def test_a_worker_on_another_base_or_layout_is_refused():
    driver = MachineDriver(run_spec())
    driver.feed(RunStarted())
    driver.join("a")
    for layout, reason in (
        (replace(LAYOUT, base_fingerprint="sha256:other"), Reason.BASE_MISMATCH),
        (replace(LAYOUT, modules=LAYOUT.modules[:1]), Reason.LAYOUT_MISMATCH),
        (replace(LAYOUT, saved_tensors=()), Reason.LAYOUT_MISMATCH),
    ):
        with pytest.raises(FedLoraError) as caught:
            driver.feed(AdapterConfirmed("a", layout))
        assert caught.value.reason is reason


def test_the_cohort_is_a_sample_that_the_seed_decides():
    spec = run_spec(num_workers=6, quorum=2, cohort_size=3)
    cohorts = []
    for order in (range(6), reversed(range(6))):
        driver = MachineDriver(spec)
        driver.start_training(*(f"w-{i}" for i in order))
        cohorts.append(driver.state.cohort)
    assert cohorts[0] == cohorts[1]
    assert len(cohorts[0]) == 3


def test_a_round_without_any_example_fails_and_says_so():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    driver.commit("a", num_examples=0)
    driver.commit("b", num_examples=0)
    assert driver.state.phase is RunPhase.FAILED
    assert "no update was trained" in driver.state.reason


def test_a_restarted_server_repeats_exactly_the_effect_that_was_pending():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    assert pending_effects(driver.state) == ()
    driver.commit("a")
    driver.commit("b")
    assert pending_effects(driver.state) == (Aggregate(1),)
    assert Certify(1) in driver.aggregated().effects


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_as_many_rounds_are_measured_as_the_rules_say(every: int, expected: list[int]):
    driver = MachineDriver(run_spec(num_rounds=5, evaluate=False, certify_every=every))
    driver.start_training("a", "b")
    measured = []
    for _ in range(5):
        driver.commit("a")
        driver.commit("b")
        effects = driver.aggregated().effects
        measured += [effect.round for effect in effects if isinstance(effect, Certify)]
    assert driver.state.phase is RunPhase.COMPLETED
    assert measured == expected


def test_a_share_of_the_test_set_is_scored_after_a_round_and_all_of_it_after_the_last():
    driver = MachineDriver(run_spec(num_rounds=2, test_share=0.25))
    driver.start_training("a", "b")
    shards = []
    for _ in range(2):
        driver.commit("a")
        driver.commit("b")
        driver.aggregated()
        tasks = [task_for(driver.state, worker, driver.now) for worker in ("a", "b")]
        shards.append([(task.shard_index, task.shard_count) for task in tasks])
        for worker in ("a", "b"):
            driver.feed(EvaluationReported(worker, ()))
    assert shards == [[(0, 8), (1, 8)], [(0, 2), (1, 2)]]


def test_evaluation_is_left_out_where_the_rules_say_so():
    driver = MachineDriver(run_spec(num_rounds=1, evaluate=False))
    driver.start_training("a", "b")
    driver.commit("a")
    driver.commit("b")
    driver.aggregated()
    assert driver.state.phase is RunPhase.COMPLETED


def test_an_evaluation_ends_at_its_deadline_with_the_scores_there_are():
    driver = MachineDriver(run_spec(num_rounds=1))
    driver.start_training("a", "b")
    driver.commit("a")
    driver.commit("b")
    driver.aggregated()
    driver.feed(EvaluationReported("a", (GLOBAL_TEST,)))
    driver.feed(DeadlineChecked(), after=60)
    assert driver.state.phase is RunPhase.COMPLETED
    (report,) = (r for t in driver.transitions for r in t.reports)
    assert [e.worker for e in report.evaluations] == ["a"]


def test_a_stopped_run_gives_everybody_the_task_to_stop():
    driver = MachineDriver(run_spec())
    driver.start_training("a", "b")
    driver.feed(RunStopped("enough"))
    task = task_for(driver.state, "a", 0)
    assert (task.kind, task.reason) == (TaskKind.STOP, "enough")


@settings(max_examples=150, deadline=None)
@example([(0, 0), (0, 1), (1, 0), (0, 0), (4, 1), (1, 0)])
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=60))
def test_no_sequence_of_events_breaks_the_invariants(script: list[tuple[int, int]]):
    """Workers come, go, submit and time out in any order; the run stays consistent."""
    driver = MachineDriver(run_spec(num_rounds=3))
    driver.feed(RunStarted())
    names, refused = [f"w-{i}" for i in range(4)], set()
    for action, index in script:
        name, known = names[index], names[index] in driver.state.workers
        before = driver.state
        try:
            if action == 0:
                driver.join(name)
            elif action == 1 and known:
                driver.feed(WorkerLost(name))
            elif action == 2 and known:
                driver.feed(WorkerReturned(name))
            elif action == 3 and known:
                driver.feed(WorkerLeft(name, ""))
            elif action == 4 and known:
                initializing = driver.state.phase is RunPhase.INITIALIZING
                driver.commit(name, round=0 if initializing else None)
            elif action == 5:
                driver.feed(DeadlineChecked(), after=61)
            elif action == 6 and driver.state.phase is RunPhase.AGGREGATING:
                driver.aggregated()
            elif action == 6 and known:
                driver.feed(EvaluationReported(name, (GLOBAL_TEST,)))
        except FedLoraError as error:
            refused.add(error.reason)
            assert driver.state == before or action == 0
        state = driver.state
        assert set(state.updates) <= set(state.cohort)
        assert state.round <= state.spec.rounds.num_rounds
        if state.phase in (RunPhase.AGGREGATING, RunPhase.EVALUATING):
            assert len(state.updates) >= state.spec.rounds.quorum
        if state.phase is RunPhase.TRAINING:
            assert state.deadline is not None
            assert state.version == state.round - 1
        if state.phase is RunPhase.COMPLETED:
            assert state.version == state.round == 3
        for worker, record in state.workers.items():
            task = task_for(state, worker, driver.now)
            if task.kind in (TaskKind.TRAIN, TaskKind.INITIALIZE, TaskKind.EVALUATE):
                # A lost one has to ask for it, and is back by that.
                is_back = record.state is WorkerState.LOST and record.confirmed
                assert record.state is WorkerState.READY or is_back
    assert refused <= {Reason.WRONG_PHASE, Reason.WRONG_ROUND}


# --- a stage on the server's own data ------------------------------------------------------

STAGED = (RoundPlan(refined=(Part.A,), published=(Part.A, Part.B)),)


def staged_run(*, refiner: bool = True) -> MachineDriver:
    """Round 1 of a method with such a stage, aggregated."""
    driver = MachineDriver(run_spec(), plans=STAGED)
    if refiner:
        driver.join("server", role=Role.SERVER_DATA)
    driver.start_training("a", "b")
    assert driver.state.cohort == ("a", "b")
    driver.commit("a")
    driver.commit("b")
    driver.aggregated()
    return driver


def refined(driver: MachineDriver) -> AdapterRefined:
    combined = driver.state.adapter
    return AdapterRefined(replace(combined, version=combined.version + 1, is_refinement=True))


def test_a_worker_with_the_servers_data_refines_what_a_round_came_to():
    driver = staged_run()
    assert (driver.state.phase, driver.state.refiner) == (RunPhase.REFINING, "server")
    task = task_for(driver.state, "server", driver.now)
    assert (task.kind, task.adapter_version) == (TaskKind.REFINE, 1)
    assert task.plan.trained == (Part.A,)
    assert task_for(driver.state, "a", driver.now).kind is TaskKind.WAIT
    assert pending_effects(driver.state) == ()
    transition = driver.commit("server")
    assert transition.effects == (Refine(1),) == pending_effects(driver.state)
    driver.feed(refined(driver))
    assert (driver.state.phase, driver.state.version) == (RunPhase.EVALUATING, 2)
    assert driver.state.evaluators == ("a", "b")
    assert sorted(driver.state.updates) == ["a", "b"]


def test_without_such_a_worker_the_round_goes_on():
    assert staged_run(refiner=False).state.phase is RunPhase.EVALUATING


@pytest.mark.parametrize("event", [WorkerLeft("server", "bye"), WorkerLost("server")])
def test_a_refiner_that_goes_is_not_waited_for(event):
    driver = staged_run()
    driver.feed(event)
    assert (driver.state.phase, driver.state.version) == (RunPhase.EVALUATING, 1)


def test_a_refiner_that_is_late_is_not_waited_for():
    driver = staged_run()
    driver.feed(DeadlineChecked(), after=61.0)
    assert driver.state.phase is RunPhase.EVALUATING


def test_only_the_refiner_may_refine_and_only_once():
    driver = staged_run()
    for worker in ("a", "server", "server"):
        if worker == "server" and driver.state.refinement is None:
            driver.commit("server")
            continue
        before = driver.state
        with pytest.raises(FedLoraError) as caught:
            driver.commit(worker)
        assert caught.value.reason is Reason.WRONG_ROUND
        assert driver.state == before


def test_the_next_round_starts_from_the_refined_version():
    driver = staged_run()
    driver.commit("server")
    driver.feed(refined(driver))
    for worker in ("a", "b"):
        driver.feed(EvaluationReported(worker, ()))
    assert (driver.state.round, driver.state.version) == (2, 2)
    assert driver.state.refinement is None


# --- what workers can do, and what they are sent ---------------------------------------------


def test_a_worker_that_lacks_a_feature_of_the_method_is_refused():
    plans = (RoundPlan(trained=(Part.A,), private=(Part.B,), published=(Part.A,)),)
    driver = MachineDriver(run_spec(), plans=plans)
    with pytest.raises(FedLoraError, match="private_parts") as caught:
        driver.join("a")
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    driver.join("a", features=(WorkerFeature.PRIVATE_PARTS,))


def test_a_worker_that_lacks_the_runs_codec_is_refused():
    driver = MachineDriver(replace(run_spec(), codec=CodecSpec(name=CodecName.NF4)))
    with pytest.raises(FedLoraError, match="written in nf4, and worker 'a' offers no codec") as no:
        driver.join("a")
    assert no.value.reason is Reason.UNSUPPORTED_METHOD
    with pytest.raises(FedLoraError, match="offers bf16, int8"):
        driver.join("a", codecs=(CodecName.INT8, CodecName.BF16))
    driver.join("a", codecs=(CodecName.NF4,))


def test_a_worker_that_prunes_keeps_its_lower_rank():
    plans = (RoundPlan(may_lower_rank=True),)
    driver = MachineDriver(run_spec(), plans=plans)
    driver.feed(RunStarted())
    features = (WorkerFeature.RANK_PRUNING,)
    driver.join("a", "b", features=features)
    driver.commit(driver.state.cohort[0], round=0)
    driver.feed(UpdateCommitted(replace(driver.update("a"), rank=3)))
    assert driver.state.workers["a"].rank == 3
    driver.join("a", features=features)
    assert driver.state.workers["a"].rank == 3
    assert driver.state.workers["b"].rank == 4


def test_no_worker_comes_back_below_the_least_rank_of_the_method():
    plan = RoundPlan(may_lower_rank=True, settings={"min_rank": 3.0})
    driver = MachineDriver(run_spec(), plans=(plan,))
    driver.feed(RunStarted())
    driver.join("a", "b", features=(WorkerFeature.RANK_PRUNING,))
    sent = {rank: LAYOUT.manifest(rank, DataType.F32) for rank in (2, 3, 4)}
    assert check_update_manifest(driver.state, plan, 4, sent[4]) == 4
    assert check_update_manifest(driver.state, plan, 4, sent[3]) == 3
    with pytest.raises(FedLoraError, match="is not the run's") as caught:
        check_update_manifest(driver.state, plan, 4, sent[2])
    assert caught.value.reason is Reason.MANIFEST_MISMATCH
    # One that was never able to more keeps what it has.
    assert check_update_manifest(driver.state, plan, 2, sent[2]) == 2


def record(version: int, round: int, **more: object) -> AdapterRecord:
    fields = {"digest": "0" * 64, "total_bytes": 1, "rank": 4, **more}
    return AdapterRecord(version=version, round=round, **fields)


def test_a_worker_is_sent_what_may_have_changed_since_the_version_it_holds():
    only_b = RoundPlan(trained=(Part.B,), published=(Part.B,))
    only_a = RoundPlan(trained=(Part.A,), published=(Part.A,))
    driver = MachineDriver(run_spec(), plans=(only_b, only_a))
    changed = lambda held, wanted: changed_parts(driver.state, held, wanted)  # noqa: E731
    assert changed(record(0, 0), record(1, 1)) == {Part.B}
    assert changed(record(1, 1), record(2, 2)) == {Part.A}
    # Whoever missed a round gets both.
    assert changed(record(0, 0), record(2, 2)) == {Part.A, Part.B}
    assert changed(record(2, 2), record(2, 2)) == frozenset(Part)


def test_what_only_a_servers_stage_changes_is_sent_after_one_alone():
    plan = RoundPlan(trained=(Part.B,), published=(Part.B,), refined=(Part.A,))
    driver = MachineDriver(run_spec(), plans=(plan,))
    changed = lambda held, wanted: changed_parts(driver.state, held, wanted)  # noqa: E731
    first, combined = record(0, 0), record(1, 1, base_version=0)
    assert changed(first, combined) == {Part.B}
    refined = record(2, 1, base_version=0, is_refinement=True)
    assert changed(combined, refined) == {Part.A}
    assert changed(first, refined) == {Part.A, Part.B}
    # Built on the refinement, of which this worker has seen nothing.
    assert changed(combined, record(3, 2, base_version=2)) == {Part.A, Part.B}
    assert changed(refined, record(3, 2, base_version=2)) == {Part.B}
