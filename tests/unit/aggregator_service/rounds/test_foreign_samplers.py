"""Samplers of other packages: what they are given, and what a wrong one makes of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from support.packages import install
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.events import WorkerLost
from aggregator_service.rounds.sampling import sample
from aggregator_service.rounds.state import RunState
from aggregator_service.store.records import dump, load
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import RuleSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.rounds import RoundEngine

FOUR = ("a", "b", "c", "d")
CODE = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True, kw_only=True)
class Theirs:
    name: ClassVar[str] = "theirs"

    def select(self, candidates, count, generator):
        names = [c.name for c in candidates]
        return {body}
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RuleSpec]:
    """Installs a sampler that returns what an expression says."""
    folder = tmp_path / "site"
    install(folder, {"fedlora.samplers": {"theirs": "their_sampler:Theirs"}})
    monkeypatch.syspath_prepend(str(folder))

    def installed(body: str) -> RuleSpec:
        (folder / "their_sampler.py").write_text(CODE.replace("{body}", body))
        # Sources of one size and second have the same bytecode to Python.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        sys.modules.pop("their_sampler", None)
        return RuleSpec(name="theirs")

    yield installed
    sys.modules.pop("their_sampler", None)


def driver_with(sampler: RuleSpec, **rules: object) -> MachineDriver:
    settings = {"quorum": 1, "cohort_size": 2, "evaluate": False, **rules}
    return MachineDriver(run_spec(num_workers=4, num_rounds=9, sampler=sampler, **settings))


def test_it_is_asked_with_what_is_known_of_each_worker(theirs):
    asked = "[f'{c.num_examples}/{c.loss}/{c.num_tasks}/{c.num_updates}' for c in candidates]"
    driver = driver_with(theirs("names[:count]"))
    driver.start_training(*FOUR)
    assert driver.state.cohort == ("a", "b")
    driver.commit("a", num_examples=30)
    theirs(asked)
    with pytest.raises(FedLoraError, match="took 30/None/1/1, 0/None/1/0, 0/None/0/0, 0/None/0/0;"):
        sample(driver.state, FOUR, 2)


def test_a_server_that_is_restarted_draws_the_same(theirs):
    driver = driver_with(theirs("generator.sample(names, count)"))
    driver.start_training(*FOUR)
    stored = TypeAdapter(RunState)
    again = load(stored, dump(stored, driver.state))
    assert again == driver.state
    for purpose in ("cohort", "stand-in 2"):
        assert sample(again, FOUR, 2, purpose=purpose) == sample(
            driver.state, FOUR, 2, purpose=purpose
        )


WRONG = {
    "[*names[:count - 1], 'w-9']": "took a, w-9; expected 2 different names of a, b, c, d",
    "names[:count - 1]": "took a; expected 2 different names",
    "[]": "took nobody; expected 2",
    "names": "took a, b, c, d; expected 2",
    "names[:1] * count": "took a, a; expected 2",
    "[[name] for name in names[:count]]": "took ['a'], ['b']; expected 2 different names",
    "None": "failed: TypeError: 'NoneType' object is not iterable",
    "1 / 0": "failed: ZeroDivisionError: division by zero",
}


@pytest.mark.parametrize("body", WRONG)
def test_one_that_takes_what_it_must_not_fails_the_run_before_its_round(theirs, body: str):
    driver = driver_with(theirs(body))
    driver.start_training(*FOUR)
    state = driver.state
    assert state.phase is RunPhase.FAILED
    assert "round 1: the client sampler theirs " + WRONG[body] in state.reason
    assert "docs/extending.md" in state.reason
    assert (state.round, state.version, state.assigned) == (0, 0, {}), "version 0 stays"
    failed = [f for t in driver.transitions for f in t.facts if f.type is EventType.RUN_FAILED]
    assert [f.detail["reason"] for f in failed] == [state.reason]
    with pytest.raises(FedLoraError) as caught:
        sample(state, FOUR, 2)
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_one_that_is_wrong_in_the_middle_of_a_round_loses_no_update_that_came(theirs):
    driver = driver_with(
        theirs("names[:count]"),
        engine=RoundEngine.BUFFERED,
        buffer_size=2,
        cohort_size=0,
        concurrency=2,
    )
    driver.start_training(*FOUR)
    assert driver.state.assigned.keys() == {"a", "b"}
    theirs("[]")
    transition = driver.commit("a")
    assert [u.worker for u in transition.updates] == ["a"]
    assert driver.state.phase is RunPhase.FAILED
    assert driver.state.updates.keys() == {"a"}
    assert driver.state.reason.startswith("round 1: the client sampler theirs took nobody")


def test_one_that_finds_no_stand_in_fails_the_run_and_the_lost_worker_is_lost(theirs):
    driver = driver_with(theirs("names[:count]"), quorum=2)
    driver.start_training(*FOUR)
    theirs("1 / 0")
    driver.feed(WorkerLost("a"))
    assert driver.state.phase is RunPhase.FAILED
    assert driver.state.workers["a"].state is WorkerState.LOST
    assert "ZeroDivisionError" in driver.state.reason


def test_a_run_whose_package_is_gone_fails_with_its_name(theirs, monkeypatch):
    driver = driver_with(theirs("names[:count]"))
    driver.start_training(*FOUR)
    for name in ("a", "b"):
        driver.commit(name)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.endswith("site")])
    driver.aggregated()
    assert driver.state.phase is RunPhase.FAILED
    assert driver.state.reason.startswith("round 2: there is no client sampler 'theirs'")
    assert driver.state.version == 1, "what round 1 came to stays"
