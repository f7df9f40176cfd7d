"""Uploads take turns: bounded in number and bytes, first come first served, none for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from aggregator_service.admission import Admission, AdmissionRules, Line, Owner
from aggregator_service.pace import Pace
from fedlora.errors import FedLoraError, Reason

RULES = AdmissionRules(
    max_uploads=2, max_bytes=100, max_waiting=2, wait_seconds=20.0, behind_seconds=5.0
)


class SomePace(Pace):
    """So far behind as a test says."""

    def __init__(self) -> None:
        self.behind = 0.0
        self.told: asyncio.Future[FedLoraError] = asyncio.get_running_loop().create_future()

    @property
    def seconds_behind(self) -> float:
        return self.behind

    @property
    def is_given_up(self) -> bool:
        return self.told.done()

    def give_up(self, error: FedLoraError) -> None:
        self.told.set_result(error)


class Upload:
    """One that asks for a place, holds it, and leaves when it is told to."""

    def __init__(self, gate: Admission, name: str, num_bytes: int = 10) -> None:
        self.pace = SomePace()
        self.runs = asyncio.Event()
        self._done = asyncio.Event()
        self._task = asyncio.create_task(self._run(gate, ("run", name), num_bytes))

    async def _run(self, gate: Admission, owner: Owner, num_bytes: int) -> None:
        async with gate.place(owner, num_bytes, self.pace):
            self.runs.set()
            done = asyncio.create_task(self._done.wait())
            await asyncio.wait({done, self.pace.told}, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()

    async def running(self) -> Upload:
        await asyncio.wait_for(self.runs.wait(), 10)
        return self

    async def refused(self) -> FedLoraError:
        with pytest.raises(FedLoraError) as caught:
            await asyncio.wait_for(self._task, 10)
        return caught.value

    async def end(self) -> None:
        self._done.set()
        await asyncio.wait_for(self._task, 10)

    async def cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@asynccontextmanager
async def admission(**changes: float) -> AsyncIterator[tuple[Admission, list[float]]]:
    """The gate, and its clock's only hand."""
    now = [0.0]
    gate = Admission(replace(RULES, **changes), lambda: now[0])
    yield gate, now
    assert (gate.num_running, gate.num_waiting) == (0, 0), "usage returns to nothing"


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_run_as_may_and_the_next_has_its_turn_when_one_ends():
    async with admission() as (gate, _):
        a, b, c = (Upload(gate, name) for name in "abc")
        await settle()
        assert (gate.num_running, c.runs.is_set()) == (2, False)
        await a.end()
        await c.running()
        await b.end()
        await c.end()


async def test_declared_bytes_are_bounded_and_a_larger_upload_runs_alone():
    async with admission() as (gate, _):
        large = await Upload(gate, "large", 1000).running()
        small = Upload(gate, "small", 1)
        await settle()
        assert not small.runs.is_set()
        await large.end()
        await (await small.running()).end()


async def test_who_came_first_is_not_overtaken_by_who_needs_less():
    async with admission() as (gate, _):
        first = await Upload(gate, "first", 60).running()
        wide, narrow = Upload(gate, "wide", 60), Upload(gate, "narrow", 1)
        await settle()
        assert gate.num_running == 1
        await first.end()
        await wide.running()
        await narrow.running()
        await wide.end()
        await narrow.end()


async def test_who_waits_too_long_is_told_when_to_come_back_what_was_expected_and_what_is():
    async with admission(max_uploads=1, wait_seconds=0.01) as (gate, _):
        a = await Upload(gate, "a", 70).running()
        error = await Upload(gate, "b", 20).refused()
        assert error.reason is Reason.SERVER_BUSY
        assert error.retry_seconds == 1.0
        assert "1 uploads of 100 bytes are taken at a time; 1 of 70 bytes" in error.message
        await a.end()


async def test_of_more_streams_than_may_wait_the_last_is_refused_at_once():
    async with admission(max_uploads=1, max_waiting=1) as (gate, _):
        a = await Upload(gate, "a").running()
        b, c = Upload(gate, "b"), Upload(gate, "c")
        assert (await c.refused()).retry_seconds == 2.0
        await a.end()
        await (await b.running()).end()


async def test_one_that_was_refused_and_returns_in_time_is_before_those_who_came_later():
    async with admission(max_uploads=1, max_waiting=1) as (gate, now):
        a = await Upload(gate, "a").running()
        b, c = Upload(gate, "b"), Upload(gate, "c")
        back = (await c.refused()).retry_seconds
        await b.cancel()
        later = Upload(gate, "later")
        await settle()
        now[0] += 1.5 * back
        c = Upload(gate, "c")
        assert (await later.refused()).reason is Reason.SERVER_BUSY
        await a.end()
        await (await c.running()).end()


async def test_one_that_stays_away_loses_its_place_in_line():
    async with admission(max_uploads=1, max_waiting=1) as (gate, now):
        a = await Upload(gate, "a").running()
        b, c = Upload(gate, "b"), Upload(gate, "c")
        back = (await c.refused()).retry_seconds
        await b.cancel()
        now[0] += 10 * back
        later = Upload(gate, "later")
        await settle()
        assert (await Upload(gate, "c").refused()).reason is Reason.SERVER_BUSY
        await a.end()
        await (await later.running()).end()


async def test_nobody_waits_for_one_that_was_refused_and_is_away():
    async with admission(max_uploads=1, wait_seconds=0.01) as (gate, _):
        a = await Upload(gate, "a").running()
        await Upload(gate, "b").refused()
        await a.end()
        await (await Upload(gate, "c").running()).end()


async def test_where_others_wait_the_one_farthest_behind_gives_its_place():
    async with admission() as (gate, _):
        a, b = await Upload(gate, "a").running(), await Upload(gate, "b").running()
        c = Upload(gate, "c")
        a.pace.behind, b.pace.behind = 5.5, 6.0
        await c.running()
        error = await b.pace.told
        assert error.reason is Reason.UPLOAD_STALLED
        assert "less than 5 s behind the least rate, got 6.0 s" in error.message
        assert not a.pace.told.done(), "one waits, so one place is wanted"
        await a.end()
        await c.end()


async def test_one_that_is_behind_keeps_its_place_while_nobody_wants_it():
    async with admission() as (gate, _):
        a = await Upload(gate, "a").running()
        a.pace.behind = 1000.0
        await (await Upload(gate, "b").running()).end()
        assert not a.pace.told.done()
        await a.end()


async def test_one_that_keeps_the_pace_never_loses_its_place():
    async with admission(max_uploads=1, wait_seconds=0.3) as (gate, _):
        a = await Upload(gate, "a").running()
        a.pace.behind = 4.9
        assert (await Upload(gate, "b").refused()).reason is Reason.SERVER_BUSY
        assert not a.pace.told.done()
        await a.end()


async def test_a_newer_stream_of_a_worker_takes_the_place_of_its_silent_one():
    async with admission() as (gate, _):
        old = await Upload(gate, "a").running()
        new = Upload(gate, "a")
        await settle()
        assert not new.runs.is_set(), "a worker has one upload at a time"
        old.pace.behind = 1.0
        await new.running()
        assert (await old.pace.told).reason is Reason.UNAVAILABLE
        await new.end()


async def test_a_newer_stream_gets_its_own_workers_place_before_anybody_else():
    async with admission(max_uploads=1) as (gate, _):
        old = await Upload(gate, "a").running()
        other = Upload(gate, "b")
        await settle()
        new = Upload(gate, "a")
        await settle()
        await old.end()
        await new.running()
        assert not other.runs.is_set()
        await new.end()
        await (await other.running()).end()


async def test_a_stream_beside_one_that_still_sends_is_refused():
    async with admission(wait_seconds=0.01) as (gate, _):
        old = await Upload(gate, "a").running()
        error = await Upload(gate, "a").refused()
        assert (error.reason, error.message) == (
            Reason.UNAVAILABLE,
            "another stream of this worker is still sending",
        )
        await old.end()


async def test_a_stream_refused_for_its_own_worker_has_no_place_in_line():
    async with admission(max_uploads=1, wait_seconds=0.01) as (gate, _):
        old = await Upload(gate, "a").running()
        await Upload(gate, "a").refused()
        assert "0 are before this one" in (await Upload(gate, "b").refused()).message
        await old.end()


async def test_of_two_streams_of_a_worker_that_wait_the_newer_stays():
    async with admission(max_uploads=1) as (gate, _):
        first = await Upload(gate, "a").running()
        older = Upload(gate, "b")
        await settle()
        newer = Upload(gate, "b")
        assert (await older.refused()).reason is Reason.UNAVAILABLE
        await first.end()
        await (await newer.running()).end()


async def test_cancelled_while_waiting_or_running_nothing_stays_taken():
    async with admission(max_uploads=1) as (gate, _):
        a, b, c = (Upload(gate, name) for name in "abc")
        await a.running()
        await b.cancel()
        await a.cancel()
        await (await c.running()).end()


async def test_ten_waves_of_ten_times_as_many_never_exceed_the_bounds():
    async with admission(max_uploads=4, max_waiting=4, wait_seconds=0.2) as (gate, _):
        for _ in range(10):
            wave = [Upload(gate, f"w-{i}", 1) for i in range(40)]
            await settle()
            assert gate.num_running == 4
            assert gate.num_waiting <= 4
            errors = await asyncio.gather(*(u.refused() for u in wave if not u.runs.is_set()))
            assert {error.reason for error in errors} == {Reason.SERVER_BUSY}
            assert len(errors) == 36
            for one in wave:
                if one.runs.is_set():
                    await one.end()


def test_a_line_keeps_the_order_of_arrival_and_counts_who_is_away():
    line, a, b, c = Line(), ("r", "a"), ("r", "b"), ("r", "c")
    for owner in (a, b, c):
        line.join(owner, now=0.0)
    line.keep(a, until=5.0)
    assert line.in_order({b, c, a}) == [a, b, c]
    assert line.num_ahead(c) == 2
    line.join(c, now=6.0)
    assert line.in_order({a, b, c}) == [b, c]
    line.leave(b)
    assert line.num_ahead(c) == 0
