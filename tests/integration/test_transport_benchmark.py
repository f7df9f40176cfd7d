"""The transport benchmark's parts, on adapters so small that nothing but their working is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transports.workers import Workers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNT = 2

# One process starts the workers, for all tests.
pytestmark = pytest.mark.xdist_group("transport benchmark")


@pytest.fixture(scope="module")
def _importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def pool(_importable: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    from transports.workers import workers

    with workers(tmp_path_factory.mktemp("pool"), processes=COUNT) as started:
        yield started


def test_every_round_is_driven_and_timed_from_its_workers(pool: Workers, tmp_path: Path):
    from transports.adapters import TINY
    from transports.federation import rounds_of

    found = rounds_of(tmp_path / "rounds", pool, TINY, count=COUNT, rounds=3)
    assert len(found.seconds) == len(found.handovers) == len(found.closes) == 3
    # The server combines after the last byte has come and before the first of the result goes.
    for handover, close in zip(found.handovers, found.closes, strict=True):
        assert 0 < close < handover
    assert min(found.seconds) > 0
    assert found.server_cpu_seconds > 0
    assert found.worker_cpu_seconds > 0
    assert not (tmp_path / "rounds").exists()


def test_uploads_and_downloads_stand_beside_their_floors(pool: Workers, tmp_path: Path):
    from transports.adapters import TINY
    from transports.throughput import throughput

    lines = throughput(tmp_path, pool, [TINY], count=COUNT, repeats=1)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if "0.131 |" in line]
    names = [row[2] for row in rows]
    assert names[:5] == [
        "**upload**",
        "bare stream",
        "bare socket",
        "**download**",
        "bare stream, down",
    ]
    shares = {row[2]: row[4] for row in rows}
    assert shares["bare stream"] == shares["bare stream, down"] == "1.00x"
    assert float(shares["**upload**"].rstrip("x")) > 0


def test_a_floor_moves_as_many_bytes_as_it_was_asked_to(pool: Workers):
    from transports.floors import over_socket, over_stream

    for way in ("push", "pull"):
        assert over_stream(pool, 2_500_000, way, count=COUNT).bytes_per_second > 0
    assert over_socket(pool, 2_500_000, count=COUNT).bytes_per_second > 0


def test_the_memory_of_a_round_is_watched_until_its_certificate(pool: Workers, tmp_path: Path):
    from transports.adapters import TINY
    from transports.memory import memory

    row = memory(tmp_path, pool, [(TINY, 2 * COUNT, "optimal")])[-2]
    workers, megabytes, method, idle, *_ = [cell.strip() for cell in row.split("|")[1:]]
    assert (workers, megabytes, method) == ("4", "0.131", "`optimal`")
    assert float(idle) > 10


def test_a_crowd_of_which_each_round_asks_some(pool: Workers, tmp_path: Path):
    from transports.adapters import TINY
    from transports.crowd import crowd

    rows = crowd(tmp_path, pool, TINY, count=6, cohort=3, rounds=2)
    assert any(row.startswith("| submissions a second") for row in rows)


def test_workers_that_fetch_at_the_same_time(pool: Workers, tmp_path: Path):
    from transports.adapters import TINY
    from transports.fetches import fetches

    rows = fetches(tmp_path, pool, TINY, count=6)
    assert any(row.startswith("| from the first one's start until all have it") for row in rows)


def test_the_curves_are_fitted_and_drawn(pool: Workers, tmp_path: Path):
    from transports.curves import curves

    plot = tmp_path / "plot.svg"
    lines = curves(tmp_path, pool, counts=(COUNT,), layers=(1,), rounds=1, plot=plot)
    assert any(line.startswith("A round takes ") for line in lines)
    assert plot.read_text().count("<polyline") == 6
