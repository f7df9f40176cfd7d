"""The server is killed at every point that an update passes: nothing is lost, nothing counts twice.

A run of twelve workers and six rounds is killed twice at one failpoint, some rounds apart, and must
end in the very bytes of the run that nobody killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from support.kill_history import LEAST_ACKNOWLEDGED, History, judge, live_through
from support.runs import run_spec

from aggregator_service.failpoints import Failpoint
from fedlora.runs.rounds import RoundEngine

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
    Failpoint.BEFORE_COMMIT: range(42, 56),
    Failpoint.COMMITTED: range(42, 56),
    Failpoint.ROUND_CLOSED: _PER_ROUND,
    Failpoint.MID_AGGREGATION: range(3, 5),
    Failpoint.AGGREGATE_STORED: _PER_ROUND,
    Failpoint.ROUND_COMMITTED: _PER_ROUND,
}
"""passages of which one kills, counted from the start of each process"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    history = asyncio.run(live_through(folder, SPEC, NAMES))
    judge(history, SPEC, NAMES)
    assert len(history.acknowledged) == 1 + 6 * 12
    return history


def kills(point: Failpoint, count: int, seed: int) -> list[str]:
    drawn = random.Random(f"{point}/{seed}")
    return [f"{point.value}=kill@{drawn.choice(PASSAGES[point])}" for _ in range(count)]


async def killed_twice(folder: Path, rules: list[str], undisturbed: History) -> None:
    history = await live_through(folder, SPEC, NAMES, rules)
    assert len(history.kills) == 2, rules
    judge(history, SPEC, NAMES)
    assert history.adapters == undisturbed.adapters, "bit for bit"
    for kill in range(2):
        assert history.around(kill) >= LEAST_ACKNOWLEDGED, "void: too little happened around it"


@pytest.mark.parametrize("point", Failpoint)
async def test_a_server_killed_at(point: Failpoint, tmp_path: Path, undisturbed: History):
    await killed_twice(tmp_path / "killed", kills(point, 2, seed=0), undisturbed)


@pytest.mark.parametrize(
    "words",
    [
        ("committed=kill@60", "aggregate_stored=kill@4", "before_acknowledgement=kill@23"),
        ("round_closed=kill@5", "kill after 20", "mid_aggregation=kill@7"),
    ],
)
async def test_a_server_of_buffered_rounds_killed_three_times(tmp_path: Path, words: tuple[str]):
    """Who comes when decides what is aggregated; but nothing is lost, and nothing counts twice."""
    rules = {"engine": RoundEngine.BUFFERED, "buffer_size": 4, "quorum": 1, "evaluate": False}
    spec = run_spec(method="flora_na", num_rounds=24, num_workers=12, **rules)
    history = await live_through(tmp_path / "killed", spec, NAMES, words)
    assert len(history.kills) == 3
    judge(history, spec, NAMES, cohorts=False)
    for kill in range(3):
        assert history.around(kill) >= LEAST_ACKNOWLEDGED, "void: too little happened around it"


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_server_killed_at_random_moments(tmp_path: Path):
    """As many kills as FEDLORA_SOAK_KILLS says, some twenty acknowledged updates apart."""
    count = int(os.environ.get("FEDLORA_SOAK_KILLS", "50"))
    seed = secrets.randbits(32)
    draw = random.Random(seed)
    spec = replace(SPEC, rounds=replace(SPEC.rounds, num_rounds=2 * count + 2))
    words = [f"kill after {draw.randrange(20, 25)}" for _ in range(count)]
    whole = await live_through(tmp_path / "whole", spec, NAMES)
    history = await live_through(tmp_path / "killed", spec, NAMES, words)
    assert len(history.kills) == count, f"seed {seed}"
    judge(history, spec, NAMES)
    assert history.adapters == whole.adapters, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("point", Failpoint)
async def test_a_server_killed_often_at(
    point: Failpoint, seed: int, tmp_path: Path, undisturbed: History
):
    await killed_twice(tmp_path / "killed", kills(point, 2, seed), undisturbed)
