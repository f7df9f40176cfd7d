"""Federations over links that are slow, lossy, narrow, half-open, parted or cut again and again.

Whatever the link does, every update that a worker was told is counted is stored once, no other is,
and the adapter that comes out is the one of a perfect link, bit for bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support.federation import connected, serving
from support.link import Conditions, Way
from support.linked_federation import (
    WORKER_TIMEOUT_SECONDS,
    Fault,
    Outcome,
    Scene,
    run_federation,
)
from support.proxied_connection import Cut
from support.runs import run_spec
from support.seeds import seeds_for
from support.tcp_proxy import FaultProxy
from support.waiting import until

from fedlora.exit_codes import ExitCode
from fedlora.runs.report import EventType, WorkerState

ENOUGH = 20
"""acknowledged updates: with fewer around its faults, a run proves nothing"""


async def none(_: Scene) -> None:
    """A perfect link."""


async def slow(scene: Scene) -> None:
    for link in scene.links:
        link.link.set(Conditions(delay_seconds=0.05, jitter_seconds=0.02))


async def lossy(scene: Scene) -> None:
    for link in scene.links:
        link.link.set(Conditions(loss=0.02))


async def narrow(scene: Scene) -> None:
    for link in scene.links:
        link.link.set(Conditions(bytes_per_second=75_000.0))


async def cut_again_and_again(scene: Scene) -> None:
    for link in scene.links:
        link.cut_after(*(scene.rng.randrange(1, 50_000) for _ in range(4)))


async def acknowledgements_lost(scene: Scene) -> None:
    """Updates arrive and are counted, and nobody is told: then the connections break."""
    await scene.until_half_have_submitted()
    before = [link.forwarded(Way.UP) for link in scene.links]

    async def answer_no_more(link: FaultProxy, before: int) -> None:
        # Far enough into its upload: it has asked where to begin.
        await link.wait_until(lambda: link.forwarded(Way.UP) > before + 8 * 1024)
        link.link.hold(Way.DOWN)

    async with asyncio.TaskGroup() as group:
        for link, bytes_before in list(zip(scene.links, before, strict=True))[1::2]:
            group.create_task(answer_no_more(link, bytes_before))
        scene.go_on.set()
    await scene.until(lambda: (scene.actor.state.version or 0) >= 1)
    for link in scene.links[1::2]:
        link.cut()
        link.heal()


async def half_open(scene: Scene) -> None:
    """The server accepts and hears; nobody hears the server. Half of the connections survive."""
    await scene.until_half_have_submitted()
    for link in scene.links:
        link.link.hold(Way.DOWN)
    scene.go_on.set()
    await scene.until_all_are_lost()
    for link in scene.links[::2]:
        link.cut()
    for link in scene.links:
        link.heal()


async def gone_for_a_second(scene: Scene) -> None:
    """No server, as far as workers can tell: connections are reset, new ones turned away."""
    await scene.until_half_have_submitted()
    for link in scene.links:
        link.partition()
        link.cut()
    scene.go_on.set()
    await asyncio.sleep(1.0)
    for link in scene.links:
        link.heal()


async def parted_for_a_moment(scene: Scene) -> None:
    await scene.until_half_have_submitted()
    for link in scene.links:
        link.partition()
    scene.go_on.set()
    await asyncio.sleep(WORKER_TIMEOUT_SECONDS / 2)
    for link in scene.links:
        link.heal()


async def parted_until_all_are_lost(scene: Scene) -> None:
    """Half of the connections go on afterwards, the others are gone."""
    await scene.until_half_have_submitted()
    for link in scene.links:
        link.partition()
    scene.go_on.set()
    await scene.until_all_are_lost()
    for link in scene.links[::2]:
        link.cut()
    for link in scene.links:
        link.heal()


# Of some faults it can be seen afterwards that they have struck.
FAULTS: Mapping[Fault, Callable[[Outcome], bool]] = {
    slow: lambda _: True,
    lossy: lambda outcome: any(link.num_stalls for link in outcome.links),
    narrow: lambda _: True,
    cut_again_and_again: lambda outcome: all(link.num_cut for link in outcome.links),
    acknowledgements_lost: lambda outcome: outcome.num_replayed == len(outcome.links) // 2,
    half_open: lambda _: True,
    gone_for_a_second: lambda outcome: all(link.num_refused for link in outcome.links),
    parted_for_a_moment: lambda _: True,
    parted_until_all_are_lost: lambda _: True,
}


def check(outcome: Outcome, *, num_workers: int, num_rounds: int) -> None:
    assert outcome.exit_codes == [ExitCode.OK] * num_workers
    assert len(outcome.stored) == 1 + num_workers * num_rounds > ENOUGH
    assert len({(round, worker) for round, worker, _ in outcome.stored}) == len(outcome.stored)
    assert outcome.acknowledged == outcome.stored


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The adapter that a perfect link ends with."""
    outcome = asyncio.run(run_federation(tmp_path_factory.mktemp("undisturbed"), none))
    check(outcome, num_workers=10, num_rounds=2)
    return outcome.digest


@pytest.mark.parametrize("seed", seeds_for("test_no_fault_of_a_link_changes_a_bit", 1))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_no_fault_of_a_link_changes_a_bit(
    tmp_path: Path, undisturbed: str, fault: Fault, seed: int
):
    outcome = await run_federation(tmp_path, fault, seed=seed)
    check(outcome, num_workers=10, num_rounds=2)
    assert outcome.digest == undisturbed
    assert FAULTS[fault](outcome)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "seed", seeds_for("test_no_fault_changes_a_bit_of_30_workers", 1, fresh=True)
)
async def test_no_fault_changes_a_bit_of_30_workers(tmp_path: Path, seed: int):
    size = {"num_workers": 30, "num_rounds": 4}
    expected = await run_federation(tmp_path / "undisturbed", none, **size)
    for fault, has_struck in FAULTS.items():
        outcome = await run_federation(tmp_path / fault.__name__, fault, seed=seed, **size)
        check(outcome, **size)
        assert outcome.digest == expected.digest
        assert has_struck(outcome)


async def dead_in_silence(scene: Scene) -> None:
    """The first connection of each worker swallows everything, as if its host had lost power."""
    for link in scene.links:
        link.cut_after(scene.rng.randrange(5_000, 50_000), how=Cut.SILENT)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", seeds_for("test_a_dead_connection_is_replaced", 1, fresh=True))
async def test_a_dead_connection_is_replaced(tmp_path: Path, undisturbed: str, seed: int):
    outcome = await run_federation(tmp_path, dead_in_silence, seed=seed)
    check(outcome, num_workers=10, num_rounds=2)
    assert outcome.digest == undisturbed
    assert all(link.num_cut == 1 for link in outcome.links)


async def test_a_poll_of_a_worker_that_has_vanished_is_no_sign_of_its_life(tmp_path: Path):
    spec = run_spec(num_workers=3)
    async with (
        serving(
            tmp_path, spec, heartbeat_interval_seconds=0.1, worker_timeout_seconds=0.3
        ) as served,
        FaultProxy(served.address) as proxy,
        connected(proxy.address) as behind,
    ):
        actor = served.aggregator.coordinator.run(spec.name)
        await (await served.worker("w-0")).task(0.0)
        vanished = await behind.worker("w-1")
        before = proxy.forwarded(Way.UP)
        poll = asyncio.create_task(vanished.task(30.0))
        await proxy.wait_until(lambda: proxy.forwarded(Way.UP) > before + len(vanished.token))
        proxy.link.hold()
        await until(lambda: actor.state.workers["w-1"].state is WorkerState.LOST)
        # Its poll is still there, and wakes at whatever happens to the run.
        await served.worker("w-2")
        await until(lambda: actor.state.workers["w-2"].state is WorkerState.LOST)
        events = await served.aggregator.coordinator.events(actor, 0)
        states = {name: worker.state for name, worker in actor.state.workers.items()}
        poll.cancel()
    assert set(states.values()) == {WorkerState.LOST}
    lost = [e.worker for e in events if e.type is EventType.WORKER_LOST]
    assert sorted(lost) == ["w-0", "w-1", "w-2"]
