"""Members of a federation, while the store that keeps them is busy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from support.memory_store import InMemoryStateStore

from aggregator_service.enrolment import Enrolment
from aggregator_service.store.threaded import ThreadedStore
from fedlora.identity.members import Revocation
from fedlora.identity.names import AccessRole

WALL = 1_800_000_000.0
REVOCATION = Revocation(role=AccessRole.WORKER, name="w-1")


@pytest.fixture
def store() -> Iterator[ThreadedStore]:
    store = ThreadedStore(InMemoryStateStore)
    yield store
    store.close()


@pytest.fixture
def enrolment(store: ThreadedStore) -> Enrolment:
    return Enrolment(store, None, certificate_days=30, wall=lambda: WALL)


async def test_a_revocation_holds_before_the_store_has_had_time_for_it(
    store: ThreadedStore, enrolment: Enrolment
):
    free = threading.Event()
    busy = asyncio.ensure_future(store.call(lambda _: free.wait()))
    revoking = asyncio.ensure_future(enrolment.revoke(REVOCATION))
    try:
        await asyncio.sleep(0)
        assert enrolment.is_revoked(AccessRole.WORKER, "w-1", WALL - 60)
    finally:
        free.set()
    await asyncio.gather(busy, revoking)


async def test_a_revocation_is_stored_although_its_operator_went_away(
    store: ThreadedStore, enrolment: Enrolment
):
    free = threading.Event()
    busy = asyncio.ensure_future(store.call(lambda _: free.wait()))
    revoking = asyncio.ensure_future(enrolment.revoke(REVOCATION))
    await asyncio.sleep(0)
    revoking.cancel()
    with suppress(asyncio.CancelledError):
        await revoking
    free.set()
    await busy
    (member,) = await enrolment.members()
    assert member.revoked_at == WALL
