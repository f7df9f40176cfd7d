"""Which round a run remembers as its best, and when it ends before its last one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import TypeAdapter
from support.runs import MachineDriver, run_spec

from aggregator_service.aggregation.registry import create_recipe
from aggregator_service.aggregation.run_checks import check_run
from aggregator_service.rounds.events import Certify, DeadlineChecked, EvaluationReported
from aggregator_service.rounds.state import RunState
from aggregator_service.rounds.summary import describe
from aggregator_service.store.records import dump, load
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import BestRound, EventType
from fedlora.runs.rounds import FinalVersion
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

JUDGED = {"best_by": "test_accuracy"}


def go_through(
    driver: MachineDriver, values: list[float | None], metric: str = "accuracy"
) -> list[int | None]:
    """Lives a round for each value, its test score or None for none; the best round after each."""
    best = []
    for value in values:
        for worker in driver.state.cohort:
            driver.commit(worker)
        driver.aggregated()
        for worker in driver.state.evaluators:
            if value is not None:
                scores = Evaluation(
                    scope=EvaluationScope.GLOBAL,
                    split=EvaluationSplit.TEST,
                    num_examples=10,
                    metrics={metric: value},
                )
                driver.feed(EvaluationReported(worker, (scores,)))
        if value is None and driver.state.phase is RunPhase.EVALUATING:
            driver.feed(DeadlineChecked(), after=1000.0)
        best.append(driver.state.best.round if driver.state.best else None)
    return best


def begun(**rules: object) -> MachineDriver:
    driver = MachineDriver(run_spec(num_rounds=9, **{**JUDGED, **rules}))
    driver.start_training("a", "b")
    return driver


def events(driver: MachineDriver, kind: EventType) -> list[dict[str, object]]:
    return [dict(f.detail) for t in driver.transitions for f in t.facts if f.type is kind]


def test_the_best_round_is_the_first_with_the_highest_score():
    driver = begun()
    assert go_through(driver, [0.5, 0.7, 0.7, 0.6, 0.8]) == [1, 2, 2, 2, 5]
    best = BestRound(round=5, adapter_version=5, metric="test_accuracy", value=0.8)
    assert driver.state.best == describe(driver.state).best == best


def test_of_losses_the_lowest_is_best():
    driver = begun(best_by="test_loss")
    assert go_through(driver, [0.5, 0.7, 0.4, 0.45], "loss") == [1, 1, 3, 3]


def test_a_round_without_the_score_is_not_judged():
    driver = begun(early_stopping_rounds=2)
    assert go_through(driver, [None, 0.5, None, None]) == [None, 2, 2, 2]
    # Two rounds have passed since the best, but nobody knows whether they were worse.
    assert driver.state.phase is RunPhase.TRAINING
    go_through(driver, [0.4])
    assert driver.state.phase is RunPhase.COMPLETED


def test_a_run_that_judges_nothing_remembers_nothing():
    driver = MachineDriver(run_spec(num_rounds=3))
    driver.start_training("a", "b")
    assert go_through(driver, [0.5, 0.6]) == [None, None]
    assert "best_round" not in events(driver, EventType.ROUND_COMPLETED)[-1]


def test_a_run_is_complete_once_its_patience_is_at_an_end_and_says_why():
    driver = begun(early_stopping_rounds=2)
    go_through(driver, [0.5, 0.7, 0.6])
    assert driver.state.phase is RunPhase.TRAINING
    go_through(driver, [0.7])
    assert (driver.state.phase, driver.state.round) == (RunPhase.COMPLETED, 4)
    assert driver.state.reason == (
        "test_accuracy has not become better in 2 rounds, since round 2 with 0.7"
    )
    (end,) = events(driver, EventType.RUN_COMPLETED)
    assert (end["num_rounds"], end["best_round"]) == (4, 2)
    assert end["reason"] == driver.state.reason
    assert [e["best_round"] for e in events(driver, EventType.ROUND_COMPLETED)] == [1, 2, 2, 2]


def test_a_better_round_begins_the_count_anew():
    driver = begun(early_stopping_rounds=2)
    go_through(driver, [0.5, 0.4, 0.6, 0.5])
    assert driver.state.phase is RunPhase.TRAINING


def test_a_run_that_ends_with_its_last_round_gives_no_other_reason():
    driver = MachineDriver(run_spec(num_rounds=3, early_stopping_rounds=2, **JUDGED))
    driver.start_training("a", "b")
    go_through(driver, [0.5, 0.4, 0.4])
    assert (driver.state.phase, driver.state.reason) == (RunPhase.COMPLETED, "")
    assert "reason" not in events(driver, EventType.RUN_COMPLETED)[0]


def test_small_steps_add_up_to_a_gain_and_noise_is_none():
    rules = {"early_stopping_rounds": 3, "early_stopping_min_change": 0.05}
    climbing = begun(**rules)
    go_through(climbing, [0.50, 0.53, 0.56, 0.59, 0.62, 0.65])
    assert climbing.state.phase is RunPhase.TRAINING
    noisy = begun(**rules)
    assert go_through(noisy, [0.50, 0.51, 0.49, 0.54]) == [1, 2, 2, 4]
    assert noisy.state.phase is RunPhase.COMPLETED
    assert "by more than 0.05 in 3 rounds, since round 1 with 0.5" in noisy.state.reason


def test_the_round_a_run_ends_with_is_certified_though_others_are_not():
    driver = begun(early_stopping_rounds=1, certify_every=5)
    go_through(driver, [0.5, 0.4])
    asked = [e.round for t in driver.transitions for e in t.effects if isinstance(e, Certify)]
    assert asked == [2]
    assert [driver.state.certifies(round) for round in (1, 2)] == [False, True]


def test_a_restart_in_between_changes_nothing():
    states = TypeAdapter(RunState)
    driver, restarted = begun(early_stopping_rounds=2), begun(early_stopping_rounds=2)
    for value in (0.5, 0.7, 0.6, 0.65):
        go_through(driver, [value])
        go_through(restarted, [value])
        restarted.state = load(states, dump(states, restarted.state))
    assert restarted.state == driver.state
    assert driver.state.phase is RunPhase.COMPLETED


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"best_by": "test_accuracy", "evaluate": False}, "rounds.evaluate is false"),
        ({"early_stopping_rounds": 2}, "judged by nothing"),
        ({"early_stopping_min_change": 0.1}, "judged by nothing"),
        ({"final_version": FinalVersion.BEST}, "judged by nothing"),
        ({**JUDGED, "early_stopping_rounds": -1}, "must not be negative"),
        ({**JUDGED, "early_stopping_rounds": 2, "evaluate_every": 3}, "below evaluate_every 3"),
        ({**JUDGED, "test_share": 0.5}, "rounds.test_share 0.5 .* on other examples"),
        (
            {"best_by": "held_out_loss", "held_out_share": 0.5},
            "rounds.held_out_share 0.5 .* on other examples",
        ),
        ({"held_out_share": 0.0}, r"must lie in \(0, 1\]"),
        ({"best_by": "test_acuracy"}, "must be one of test_accuracy, "),
        ({"best_by": "local_accuracy"}, "must be one of test_accuracy, "),
        ({"best_by": "test_exact_match"}, "must be one of test_accuracy, "),
    ],
)
def test_rules_that_could_never_be_kept_are_refused(rules: dict[str, object], text: str):
    with pytest.raises(FedLoraError, match=text) as caught:
        run_spec(**rules)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_language_models_are_judged_by_scores_of_their_own():
    spec = run_spec()
    adapter = replace(spec.adapter, task_type=TaskType.CAUSAL_LM, labels=(), modules_to_save=())
    rules = replace(spec.rounds, best_by="held_out_exact_match")
    assert replace(spec, adapter=adapter, rounds=rules).rounds.best_by == "held_out_exact_match"


def test_a_personal_score_needs_workers_that_have_one():
    spec = run_spec(best_by="personal_accuracy")
    with pytest.raises(FedLoraError, match="have no personal score"):
        check_run(create_recipe(spec.method), spec, has_base_weights=False)
    staged = replace(spec, method=MethodSpec(name="fedlora_optimizer"))
    own = replace(spec, plugins=(RuleSpec(name="ditto"),))
    for able in (staged, own):
        check_run(create_recipe(able.method, able.plugins), able, has_base_weights=False)
