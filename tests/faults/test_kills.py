"""The server is killed at every point that an update passes: nothing is lost, nothing counts twice.

A run of twelve workers and six rounds is killed twice at one failpoint, some rounds apart, and must
end in the very bytes of the run that nobody killed. So must one whose server and workers remember
things from round to round, and one that makes a version of every update.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.kill_history import History, judge, live_through
from support.runs import run_spec
from support.seeds import seeds_for

from aggregator_service.failpoints import Failpoint
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.rounds import RoundEngine
from fedlora.runs.spec import RunSpec

NAMES = tuple(f"w-{i:02d}" for i in range(12))
SPEC = run_spec(method="flora_na", num_rounds=6, num_workers=len(NAMES), evaluate=False)

_PER_UPDATE = range(15, 24)
"""passages after which a point that every update passes has seen one round and part of the next"""

_PER_ROUND = range(2, 3)

PASSAGES = {
    **dict.fromkeys(Failpoint, _PER_UPDATE),
    # Some thirteen chunks to an update.
    Failpoint.MID_CHUNK: range(190, 250),
    # A transaction per update, and some per round; registrations and confirmations the first time.
    Failpoint.BEFORE_COMMIT: range(42, 52),
    Failpoint.COMMITTED: range(42, 52),
    Failpoint.ROUND_CLOSED: _PER_ROUND,
    Failpoint.MID_AGGREGATION: range(3, 5),
    Failpoint.AGGREGATE_STORED: _PER_ROUND,
    Failpoint.ROUND_COMMITTED: _PER_ROUND,
    # Behind the rounds, of which it may drop several at once.
    Failpoint.UPDATES_DROPPED: range(1, 2),
}
"""passages of which one kills, counted from the start of each process"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    history = asyncio.run(live_through(folder, SPEC, NAMES))
    judge(history, SPEC, NAMES)
    assert len(history.acknowledged) == 1 + 6 * 12
    return history


def kills(point: Failpoint, passages: range, seed: int) -> list[str]:
    draw = random.Random(f"{point}/{seed}")
    # Nothing says that another round is dropped before the run is over.
    times = 1 if point is Failpoint.UPDATES_DROPPED else 2
    return [f"{point.value}=kill@{draw.choice(passages)}" for _ in range(times)]


async def killed(
    folder: Path, words: list[str], undisturbed: History, spec: RunSpec = SPEC
) -> None:
    history = await live_through(folder, spec, NAMES, words)
    assert len(history.kills) == len(words), words
    judge(history, spec, NAMES)
    assert history.adapters == undisturbed.adapters, "bit for bit"


@pytest.mark.parametrize("seed", seeds_for("test_a_server_killed_at", 1))
@pytest.mark.parametrize("point", Failpoint)
async def test_a_server_killed_at(
    point: Failpoint, seed: int, tmp_path: Path, undisturbed: History
):
    await killed(tmp_path / "killed", kills(point, PASSAGES[point], seed), undisturbed)


# --- what is remembered from round to round ------------------------------------------------

FEDADAM = RuleSpec(name="fedadam")
SCAFFOLD = RuleSpec(name="scaffold")


def remembering(optimizer: RuleSpec | None, *plugins: RuleSpec, num_rounds: int) -> RunSpec:
    """m and v of a server optimiser, the sum of SCAFFOLD's c_u: there when the next round ends."""
    uniform = RuleSpec(name="uniform")
    method = MethodSpec(name="fedit", weighting=uniform, server_optimizer=optimizer)
    rounds = replace(SPEC.rounds, num_rounds=num_rounds)
    return replace(SPEC, method=method, plugins=plugins, rounds=rounds)


async def as_if_nobody_had_killed_it(
    folder: Path, spec: RunSpec, words: Sequence[str], names: Sequence[str] = NAMES
) -> None:
    whole = await live_through(folder / "whole", spec, names)
    history = await live_through(folder / "killed", spec, names, words)
    assert len(history.kills) == len(words), words
    judge(history, spec, names, cohorts=spec.rounds.engine is RoundEngine.SYNC)
    assert history.adapters == whole.adapters, "bit for bit"


async def test_a_server_that_remembers_killed_around_the_close(tmp_path: Path):
    """Counted twice or forgotten, what it remembers would change every later bit."""
    spec = remembering(FEDADAM, SCAFFOLD, num_rounds=4)
    words = ("mid_aggregation=kill@3", "round_committed=kill@2")
    await as_if_nobody_had_killed_it(tmp_path, spec, words)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "plugins"), [(FEDADAM, ()), (None, (SCAFFOLD,))])
async def test_a_server_that_remembers_one_thing_killed_four_times_around_the_close(
    tmp_path: Path, optimizer: RuleSpec | None, plugins: tuple[RuleSpec, ...]
):
    words = (
        "round_closed=kill@2",
        "mid_aggregation=kill@3",
        "aggregate_stored=kill@2",
        "round_committed=kill@2",
    )
    spec = remembering(optimizer, *plugins, num_rounds=6)
    await as_if_nobody_had_killed_it(tmp_path, spec, words)


# --- other engines -------------------------------------------------------------------------

ENGINES = {
    RoundEngine.BUFFERED: {"num_rounds": 24, "buffer_size": 4},
    RoundEngine.ASYNC: {"num_rounds": 90},
}


def out_of_step(engine: RoundEngine, **rules: object) -> RunSpec:
    rules = {**ENGINES[engine], "num_workers": 12, "quorum": 1, "evaluate": False, **rules}
    return run_spec(method="flora_na", engine=engine, **rules)


async def killed_out_of_step(folder: Path, engine: RoundEngine, words: Sequence[str]) -> None:
    """Who comes when decides what is aggregated; but nothing is lost, and nothing counts twice."""
    spec = out_of_step(engine)
    history = await live_through(folder, spec, NAMES, words)
    assert len(history.kills) == len(words), words
    judge(history, spec, NAMES, cohorts=False)


@pytest.mark.parametrize(
    "words",
    [
        ("committed=kill@60", "aggregate_stored=kill@4", "before_acknowledgement=kill@23"),
        ("round_closed=kill@5", "kill after 20", "mid_aggregation=kill@7"),
    ],
)
async def test_a_server_of_buffered_rounds_killed_three_times(tmp_path: Path, words: tuple[str]):
    await killed_out_of_step(tmp_path / "killed", RoundEngine.BUFFERED, words)


async def test_a_server_that_makes_a_version_of_every_update_killed(tmp_path: Path):
    """One worker: who comes when is fixed, and so is every version."""
    spec = out_of_step(RoundEngine.ASYNC, num_rounds=24, num_workers=1)
    words = ("before_acknowledgement=kill@12",)
    await as_if_nobody_had_killed_it(tmp_path, spec, words, NAMES[:1])


PASSED_IN_A_ROUND = {
    Failpoint.ROUND_CLOSED: 1,
    Failpoint.MID_AGGREGATION: 2,
    Failpoint.AGGREGATE_STORED: 1,
    Failpoint.ROUND_COMMITTED: 1,
}


def passages(point: Failpoint, engine: RoundEngine) -> range:
    """As `PASSAGES`, where rounds have fewer updates: some twenty of them to a life."""
    if point not in PASSED_IN_A_ROUND:
        return PASSAGES[point]
    first = PASSED_IN_A_ROUND[point] * 20 // out_of_step(engine).rounds.closing_updates
    return range(first, first + 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seed", seeds_for("test_a_server_whose_rounds_wait_for_no_cohort", 1, fresh=True)
)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("point", Failpoint)
async def test_a_server_whose_rounds_wait_for_no_cohort(
    point: Failpoint, engine: RoundEngine, seed: int, tmp_path: Path
):
    words = kills(point, passages(point, engine), seed)
    await killed_out_of_step(tmp_path / "killed", engine, words)


# --- killed at any moment ------------------------------------------------------------------

KILLS_IN_A_LIFE = 50
LIVES = -(-int(os.environ.get("FEDLORA_SOAK_KILLS", "50")) // KILLS_IN_A_LIFE)
LONG_SPEC = replace(SPEC, rounds=replace(SPEC.rounds, num_rounds=2 * KILLS_IN_A_LIFE + 2))


@pytest.fixture(scope="module")
def long_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> History:
    return asyncio.run(live_through(tmp_path_factory.mktemp("long") / "whole", LONG_SPEC, NAMES))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "seed", seeds_for("test_a_server_killed_at_random_moments", LIVES, fresh=True)
)
async def test_a_server_killed_at_random_moments(
    tmp_path: Path, seed: int, long_undisturbed: History
):
    """Some twenty acknowledged updates apart; FEDLORA_SOAK_KILLS says how many kills in all."""
    draw = random.Random(seed)
    words = [f"kill after {draw.randrange(20, 25)}" for _ in range(KILLS_IN_A_LIFE)]
    await killed(tmp_path / "killed", words, long_undisturbed, LONG_SPEC)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds_for("test_a_server_killed_often_at", 4, fresh=True))
@pytest.mark.parametrize("point", Failpoint)
async def test_a_server_killed_often_at(
    point: Failpoint, seed: int, tmp_path: Path, undisturbed: History
):
    await killed(tmp_path / "killed", kills(point, PASSAGES[point], seed), undisturbed)
