"""A transfer that does not move is given up, with an error that says what was expected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from aggregator_service.pace import Pace, PaceRules
from fedlora.errors import FedLoraError, Reason

RULES = PaceRules(
    idle_timeout_seconds=30.0, min_bytes_per_second=100.0, rate_seconds=30.0, deadline_seconds=0.0
)


class Time:
    """Stands in for the loop's clock: it moves when a peer takes its time."""

    def __init__(self, pace: Pace) -> None:
        self.now = 0.0
        pace._clock = lambda: self.now
        pace._started = 0.0


async def paced(total_bytes: int = 10_000, **changes: float) -> tuple[Pace, Time]:
    pace = Pace(replace(RULES, **changes), total_bytes)
    return pace, Time(pace)


async def after(time: Time, seconds: float) -> None:
    """A peer that takes so long."""
    time.now += seconds


async def test_waiting_for_the_peer_falls_behind_and_bytes_catch_up():
    pace, time = await paced()
    await pace.wait(after(time, 5.0))
    pace.moved(200)
    assert pace.seconds_behind == pytest.approx(3.0)
    pace.moved(10_000)
    assert pace.seconds_behind == 0.0, "what came early pays for nothing later"


async def test_the_servers_own_work_is_not_counted_against_the_peer():
    pace, time = await paced()
    await pace.wait(after(time, 5.0))
    time.now += 1000.0
    assert pace.seconds_behind == pytest.approx(5.0)


async def test_silence_ends_at_the_idle_timeout():
    rules = replace(RULES, idle_timeout_seconds=0.05)
    with pytest.raises(FedLoraError, match=r"expected within 0\.05 s, got none") as caught:
        await Pace(rules, 10_000).wait(asyncio.Event().wait())
    assert caught.value.reason is Reason.UPLOAD_STALLED


async def test_one_that_keeps_sending_too_little_is_given_up_for_its_rate():
    rules = replace(RULES, idle_timeout_seconds=10.0, rate_seconds=0.1)

    async def drops() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b""

    with pytest.raises(FedLoraError, match="100 bytes a second were expected, got 0") as caught:
        async for _ in Pace(rules, 10_000).follow(drops(), len):
            pass
    assert caught.value.reason is Reason.UPLOAD_TOO_SLOW


async def test_a_transfer_has_the_time_that_its_bytes_take_at_the_least_rate():
    assert RULES.deadline_of(10_000) == 30.0 + 100.0
    assert replace(RULES, deadline_seconds=7.0).deadline_of(10_000) == 7.0
    rules = replace(RULES, deadline_seconds=0.05)
    pace = Pace(rules, 10_000)
    pace.moved(9_999)
    with pytest.raises(FedLoraError, match=r"10000 bytes .* within 0\.05 s, got 9999") as caught:
        await pace.wait(asyncio.Event().wait())
    assert caught.value.reason is Reason.UPLOAD_TOO_SLOW


async def test_messages_pass_unchanged_and_the_end_of_the_stream_is_the_end():
    async def words() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    pace = Pace(RULES, 6)
    assert [word async for word in pace.follow(words(), len)] == [b"one", b"two"]


async def test_one_that_is_told_to_give_up_ends_in_the_wait_it_is_in():
    pace = Pace(RULES, 10_000)
    waiting = asyncio.create_task(pace.wait(asyncio.Event().wait()))
    await asyncio.sleep(0)
    pace.give_up(FedLoraError(Reason.UNAVAILABLE, "enough"))
    with pytest.raises(FedLoraError, match="enough"):
        await waiting


async def test_one_that_is_told_to_give_up_in_between_ends_at_its_next_wait():
    pace = Pace(RULES, 10_000)
    pace.give_up(FedLoraError(Reason.UNAVAILABLE, "enough"))
    assert pace.is_given_up
    with pytest.raises(FedLoraError, match="enough"):
        await pace.wait(asyncio.Event().wait())


async def test_a_reader_that_makes_room_too_slowly_is_given_up_unless_it_has_everything():
    pace, time = await paced(total_bytes=2000)
    pace.took(1000, 39.0)
    assert pace.seconds_behind == pytest.approx(29.0)
    time.now = 50.0
    with pytest.raises(FedLoraError, match="100 bytes a second were expected, got 30") as caught:
        pace.took(500, 11.0)
    assert caught.value.reason is Reason.UPLOAD_TOO_SLOW
    pace.took(500, 100.0)
