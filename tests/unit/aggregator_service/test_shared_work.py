from __future__ import annotations

import asyncio

import pytest

from aggregator_service.shared_work import SharedWork


async def test_work_is_done_once_for_all_that_ask():
    shared: SharedWork[str, int] = SharedWork(kept=2)
    done = []

    async def work() -> int:
        done.append(1)
        await asyncio.sleep(0)
        return 7

    assert await asyncio.gather(*(shared.begin("a", work) for _ in range(50))) == [7] * 50
    assert await shared.begin("a", work) == 7
    assert len(done) == 1


async def test_the_results_asked_for_last_are_kept():
    shared: SharedWork[str, str] = SharedWork(kept=2)
    made = []

    async def work(key: str) -> str:
        made.append(key)
        return key

    for key in "abacab":
        await shared.begin(key, lambda key=key: work(key))
    assert made == ["a", "b", "c", "b"]
    assert len(shared) == 2


async def test_what_failed_is_done_again_and_nobody_is_told_twice():
    shared: SharedWork[str, int] = SharedWork(kept=2)
    answers = iter([LookupError("first"), 5])

    async def work() -> int:
        await asyncio.sleep(0)
        if isinstance(answer := next(answers), LookupError):
            raise answer
        return answer

    failed = [shared.begin("a", work) for _ in range(2)]
    for each in failed:
        with pytest.raises(LookupError):
            await asyncio.shield(each)
    assert await shared.begin("a", work) == 5


async def test_what_has_failed_this_very_moment_is_done_again():
    """Asked for in the turn of the loop in which it failed, before its callbacks are called."""
    shared: SharedWork[str, int] = SharedWork(kept=2)

    async def fails() -> int:
        raise LookupError

    async def work() -> int:
        return 5

    failed = shared.begin("a", fails)
    await asyncio.sleep(0)
    assert failed.done()
    assert len(shared) == 1, "the callback has not been called yet"
    again = shared.begin("a", work)
    assert again is not failed
    with pytest.raises(LookupError):
        await failed
    assert await again == 5
    assert shared.begin("a", fails) is again


async def test_one_that_goes_away_stops_the_work_for_nobody():
    shared: SharedWork[str, int] = SharedWork(kept=2)
    go = asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 3

    async def ask() -> int:
        return await asyncio.shield(shared.begin("a", work))

    first, second = asyncio.ensure_future(ask()), asyncio.ensure_future(ask())
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == 3


async def test_whoever_lets_results_go_is_told_of_each_once_also_where_it_comes_late():
    dropped: list[str] = []
    shared: SharedWork[str, str] = SharedWork(kept=1, on_dropped=dropped.append)
    go_on = asyncio.Event()

    async def slow() -> str:
        await go_on.wait()
        return "slow"

    async def quick(key: str) -> str:
        return key

    async def fails() -> str:
        raise LookupError

    waiting = shared.begin("slow", slow)
    await shared.begin("a", lambda: quick("a"))
    with pytest.raises(LookupError):
        await shared.begin("b", fails)
    assert dropped == ["a"]
    go_on.set()
    await waiting
    await asyncio.sleep(0)
    assert dropped == ["a", "slow"]
