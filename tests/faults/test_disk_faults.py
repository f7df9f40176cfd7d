"""A disk that refuses, at each place where an update needs it: the server lives, and goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.federation import random_adapter, serving
from support.kill_history import History, judge, live_through
from support.runs import run_spec

from aggregator_service.failpoints import Failpoint
from aggregator_service.transport.server import ALIVE
from fedlora.errors import FedLoraError, Reason

NAMES = tuple(f"w-{i:02d}" for i in range(12))
SPEC = run_spec(method="flora_na", num_rounds=3, num_workers=len(NAMES), evaluate=False)

PLACES = {
    # Writing a chunk, the fsync, the rename, the database's commit: the first passages of round 1.
    Failpoint.MID_CHUNK: 40,
    Failpoint.BLOB_UNSYNCED: 9,
    Failpoint.BEFORE_RENAME: 9,
    Failpoint.BEFORE_COMMIT: 35,
}


def limit_pages(store: Any, pages: int) -> None:
    """SQLite takes no more than these, or than there are, as on a full disk."""
    store._db.execute(f"PRAGMA max_page_count = {pages}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    return asyncio.run(live_through(folder, SPEC, NAMES))


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("place", PLACES)
async def test_five_refusals_in_a_row_lose_nothing(
    place: Failpoint, error: str, tmp_path: Path, undisturbed: History
):
    word = f"{place.value}={error}@{PLACES[place]}x5"
    history = await live_through(tmp_path / "refused", SPEC, NAMES, [word])
    assert history.kills == []
    judge(history, SPEC, NAMES)
    assert history.adapters == undisturbed.adapters, "bit for bit"
    log = (tmp_path / "refused" / "server.log").read_text()
    assert f"failpoint {place.value}" in log, "void: nothing was refused"
    assert "disk_takes_writes" in log


async def test_a_version_that_the_disk_refuses_is_made_again(tmp_path: Path, undisturbed: History):
    word = f"{Failpoint.MID_AGGREGATION.value}=ENOSPC@1x2"
    history = await live_through(tmp_path / "refused", SPEC, NAMES, [word])
    judge(history, SPEC, NAMES)
    assert history.adapters == undisturbed.adapters


async def test_health_says_not_serving_until_the_disk_takes_writes_again(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        workers = [await served.worker(f"w-{i}") for i in range(2)]
        disk = served.aggregator.coordinator.disk
        is_full = asyncio.Event()
        is_full.set()

        def probe() -> None:
            if is_full.is_set():
                raise FedLoraError(Reason.OUT_OF_SPACE, "no room on the server")

        disk._probe = probe
        stub = health_pb2_grpc.HealthStub(served.channel)
        status = health_pb2.HealthCheckResponse
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
        statuses = aiter(watch)
        assert (await anext(statuses)).status == status.SERVING
        disk.noticed(FedLoraError(Reason.OUT_OF_SPACE, "no room on the server"))
        assert (await anext(statuses)).status == status.NOT_SERVING
        alive = await stub.Check(health_pb2.HealthCheckRequest(service=ALIVE))
        assert alive.status == status.SERVING
        task = await workers[0].task()
        await workers[0].push(task, random_adapter(4, seed=0), num_examples=0)
        is_full.clear()
        assert (await anext(statuses)).status == status.SERVING
        watch.cancel()


async def test_a_step_that_the_database_has_no_room_for_is_noticed(tmp_path: Path):
    async with serving(tmp_path, run_spec("first")) as served:
        coordinator = served.aggregator.coordinator
        await coordinator.store.call(lambda s: limit_pages(s, 1))

        async def create_more() -> None:
            while True:
                await coordinator.create_run(run_spec(f"r-{len(coordinator.runs())}"), start=True)

        with pytest.raises(FedLoraError) as caught:
            await create_more()
        assert caught.value.reason is Reason.OUT_OF_SPACE
        assert not coordinator.disk.takes_writes
        await coordinator.store.call(lambda s: limit_pages(s, 2**30))
        while not coordinator.disk.takes_writes:
            await coordinator.disk.wait_for_change()
        await coordinator.create_run(run_spec("last"), start=True)


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.NOT_FINITE])
async def test_other_errors_say_nothing_of_the_disk(tmp_path: Path, reason: Reason):
    async with serving(tmp_path, None) as served:
        disk = served.aggregator.coordinator.disk
        disk.noticed(FedLoraError(reason, "another stream is open"))
        assert disk.takes_writes
