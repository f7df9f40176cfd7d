"""Which files go, and when: updates that nobody reads any more, and what nobody names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
from support.memory_store import InMemoryStateStore
from support.runs import run_spec
from support.sample_run import sample_certificate, sample_round

from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from aggregator_service.store.blobs import BlobStore, Swept
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.sweeper import Sweeper
from fedlora.errors import FedLoraError, Reason

SPEC = run_spec(num_rounds=9)


class Server:
    """A run whose rounds are rows and small files."""

    def __init__(self, folder: Path, keep_rounds: int = 1, certify_every: int = 1) -> None:
        self.inner = InMemoryStateStore()
        self.store = ThreadedStore(lambda: self.inner)
        self.blobs = BlobStore(folder)
        self.loop, sweep = asyncio.get_running_loop(), self.blobs.sweep

        def counted(named: Callable[[], Collection[str]]) -> Swept:
            found = sweep(named)
            self.sweeps += 1
            self.loop.call_soon_threadsafe(self.changed.set)
            return found

        self.blobs.sweep = counted
        self.sweeper = Sweeper(self.store, self.blobs, keep_rounds=keep_rounds)
        spec = replace(SPEC, rounds=replace(SPEC.rounds, certify_every=certify_every))
        self.state = RunState(run_id="r", spec=spec, created_at=0.0)
        self.files: dict[str, str] = {}
        """digests, by what they are of"""
        self.sweeps = 0
        self.changed = asyncio.Event()

    def blob(self, what: str) -> str:
        path = self.blobs.new_temporary()
        path.write_text(what)
        self.files[what] = self.blobs.adopt(path)
        self.blobs.release(self.files[what])
        return self.files[what]

    def round(self, number: int, *, certified: bool = True, next_is_open: bool = True) -> None:
        """A round is completed, with two updates, and maybe certified; the next may be open."""
        version = AdapterRecord(
            version=number,
            round=number,
            digest=self.blob(f"version {number}"),
            state_digest=self.blob(f"memory {number}"),
            total_bytes=1,
            rank=4,
            base_version=number - 1,
        )
        updates = tuple(
            UpdateRecord(
                update_id=f"{number}/{worker}",
                round=number,
                worker=worker,
                idempotency_key=f"{number}/{worker}",
                digest=self.blob(f"update {number} {worker}"),
                total_bytes=1,
                base_version=number - 1,
                rank=4,
                num_examples=1,
            )
            for worker in "ab"
        )
        self.state = replace(self.state, round=number + next_is_open, adapter=version)
        report = sample_round(number, certified=False)
        self.commit(adapters=(version,), updates=updates, reports=(report,))
        if certified:
            self.certify(number)

    def certify(self, number: int) -> None:
        self.commit(certificates=((number, sample_certificate(number)),))

    def commit(self, **parts: object) -> None:
        self.inner.commit(Transaction(state=self.state, clock=0.0, **parts))
        reports = (sample_round(1),) if "reports" in parts or "certificates" in parts else ()
        self.sweeper.committed(self.state, (), reports)

    @property
    def there(self) -> set[str]:
        """What has its file."""
        return {what for what, digest in self.files.items() if self.blobs.path(digest).exists()}

    def updates(self, *rounds: int) -> set[str]:
        return {f"update {round} {worker}" for round in rounds for worker in "ab"}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once a sweep, or what a test does, has made it so."""
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def swept(self) -> None:
        """Returns once a sweep that begins after this is over."""
        for _ in range(2):
            number = self.sweeps
            self.commit(reports=(sample_round(1, certified=False),))
            # The first may have begun before.
            await self.until(lambda number=number: self.sweeps > number)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(**settings: int) -> Server:
        servers.append(Server(tmp_path, **settings))
        return servers[-1]

    yield make
    for server in servers:
        await server.sweeper.close()
        server.store.close()


async def test_updates_go_with_their_rounds_certificate_and_versions_stay(opened):
    server = opened()
    server.sweeper.start([])
    server.round(1)
    server.round(2, certified=False)
    await server.swept()
    versions = {"version 1", "version 2"}
    # The certificate of round 2 reads what its base remembered.
    assert server.there == versions | server.updates(2) | {"memory 1", "memory 2"}
    server.certify(2)
    await server.swept()
    assert server.there == versions | {"memory 2"}, "the state names what the next round builds on"
    server.round(3)
    await server.swept()
    assert server.there == versions | {"version 3", "memory 3"}
    assert len(server.inner.updates("r", 1)) == 2, "what was sent is known"


@pytest.mark.parametrize(("keep", "kept"), [(1, ()), (3, (2, 3)), (0, (1, 2, 3)), (9, (1, 2, 3))])
async def test_as_many_rounds_are_kept_as_it_is_told(opened, keep: int, kept: tuple[int, ...]):
    server = opened(keep_rounds=keep)
    server.sweeper.start([])
    for number in (1, 2, 3):
        server.round(number)
    await server.swept()
    assert {what for what in server.there if what[0] == "u"} == server.updates(*kept)


async def test_a_round_that_is_never_certified_is_not_waited_for(opened):
    server = opened(certify_every=2)
    server.sweeper.start([])
    for number in (1, 2):
        server.round(number, certified=False)
    await server.swept()
    assert {what for what in server.there if what[0] == "u"} == server.updates(2)


async def test_updates_go_with_the_beginning_of_a_round_that_was_waited_for(opened):
    server = opened()
    server.sweeper.start([])
    server.round(1, next_is_open=False)
    await server.swept()
    assert server.updates(1) < server.there
    # Workers have come. Nothing will be reported, should the run be stopped in this round.
    server.state = replace(server.state, round=2)
    server.commit()
    await server.until(lambda: server.there == {"version 1", "memory 1"})


async def test_what_an_earlier_server_has_left_goes_at_the_start(opened):
    server = opened()
    server.round(1)
    server.round(2)
    server.blob("of a server that was killed")
    server.sweeper.start([server.state])
    await server.until(lambda: server.there == {"version 1", "version 2", "memory 2"})


async def test_a_refused_write_is_tried_again_and_nothing_goes_before(
    opened, monkeypatch: pytest.MonkeyPatch
):
    server, refusals = opened(), [Reason.OUT_OF_SPACE, Reason.DISK_FAILED]
    drop = server.inner.drop_updates

    def refuses(run_id: str, rounds: list[int]) -> None:
        if refusals:
            raise FedLoraError(refusals.pop(), "no")
        drop(run_id, rounds)

    monkeypatch.setattr(server.inner, "drop_updates", refuses)
    monkeypatch.setattr("aggregator_service.sweeper._REFUSED_WAIT_SECONDS", 0.5)
    server.round(1)
    server.sweeper.start([server.state])
    # Twice the wait, which is no part of the time that a sweep has taken.
    async with asyncio.timeout(8):
        await server.until(lambda: server.there == {"version 1", "memory 1"})


async def test_a_server_that_was_replaced_takes_nothing_away(
    opened, monkeypatch: pytest.MonkeyPatch
):
    server = opened()
    asked = asyncio.Event()

    def fenced() -> frozenset[str]:
        server.loop.call_soon_threadsafe(asked.set)
        raise FedLoraError(Reason.STATE_LOCKED, "a newer server owns the state")

    monkeypatch.setattr(server.inner, "named_blobs", fenced)
    server.blob("of the newer server, not named yet")
    server.sweeper.start([])
    await asyncio.wait_for(asked.wait(), 20)
    await server.sweeper.close()
    assert server.there == {"of the newer server, not named yet"}
