from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from support.memory_store import InMemoryStateStore
from support.runs import run_spec

from aggregator_service.rounds.ports import StateStore, Transaction
from aggregator_service.rounds.state import RunState
from aggregator_service.store.sqlite import SqliteStateStore
from aggregator_service.store.threaded import ThreadedStore
from fedlora.errors import FedLoraError, Reason

STATE = RunState(run_id="r", spec=run_spec(), created_at=0.0)


async def test_a_connection_of_one_thread_serves_the_event_loop(tmp_path: Path):
    store = ThreadedStore(lambda: SqliteStateStore(tmp_path / "db"))
    await store.call(lambda s: s.commit(Transaction(state=STATE, clock=1.0)))
    assert await store.call(lambda s: s.load_runs()) == ((STATE, 1.0),)
    store.close()


async def test_calls_run_one_at_a_time_in_their_order():
    store = ThreadedStore(InMemoryStateStore)
    done: list[int] = []
    threads: set[int] = set()

    def note(number: int) -> None:
        threads.add(threading.get_ident())
        done.append(number)

    async with asyncio.TaskGroup() as group:
        for i in range(50):
            group.create_task(store.call(lambda _, i=i: note(i)))
    assert done == list(range(50))
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1
    store.close()


async def test_what_the_store_raises_reaches_the_caller_and_the_next_call_works():
    store = ThreadedStore(InMemoryStateStore)

    def refuse(_: StateStore) -> None:
        raise FedLoraError(Reason.ALREADY_EXISTS, "there")

    with pytest.raises(FedLoraError, match="there"):
        await store.call(refuse)
    assert await store.call(lambda s: s.load_runs()) == ()
    store.close()


def test_a_store_that_cannot_be_opened_says_so_at_once(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"not a database" * 1000)
    with pytest.raises(FedLoraError) as caught:
        ThreadedStore(lambda: SqliteStateStore(tmp_path / "db"))
    assert caught.value.reason is Reason.STATE_CORRUPT


async def test_closing_waits_for_what_was_asked_before(tmp_path: Path):
    store = ThreadedStore(lambda: SqliteStateStore(tmp_path / "db"))
    last = asyncio.ensure_future(
        store.call(lambda s: s.commit(Transaction(state=STATE, clock=2.0)))
    )
    await asyncio.sleep(0)
    store.close()
    await last
    again = SqliteStateStore(tmp_path / "db")
    assert again.load_runs() == ((STATE, 2.0),)
    again.close()


async def test_a_store_that_another_server_has_taken_says_so_once(tmp_path: Path):
    threads: list[str] = []
    store = ThreadedStore(
        lambda: SqliteStateStore(tmp_path / "db"),
        on_fenced=lambda: threads.append(threading.current_thread().name),
    )
    await store.call(lambda s: s.commit(Transaction(state=STATE, clock=1.0)))
    assert threads == []
    newer = SqliteStateStore(tmp_path / "db")
    for _ in range(2):
        with pytest.raises(FedLoraError) as caught:
            await store.call(lambda s: s.commit(Transaction(state=STATE, clock=2.0)))
        assert caught.value.reason is Reason.STATE_LOCKED
    assert [name.split("_")[0] for name in threads] == ["store"]
    newer.close()
    store.close()
