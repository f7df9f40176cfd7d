from __future__ import annotations

import asyncio
import errno

import pytest

from aggregator_service import disk_watch
from aggregator_service.disk_watch import DiskWatch
from fedlora.errors import FedLoraError, Reason


def refusal(reason: Reason) -> FedLoraError:
    return FedLoraError(reason, "for a test")


async def test_what_the_disk_refuses_is_tried_again_until_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(disk_watch, "_FIRST_WAIT_SECONDS", 0.001)
    refusals = [refusal(Reason.OUT_OF_SPACE), refusal(Reason.DISK_FAILED)]
    watch = DiskWatch(lambda: None)

    async def attempt() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    assert await watch.insist("a test", attempt) == "done"
    assert refusals == []
    await watch.close()


async def test_whatever_the_disk_says_meanwhile_it_is_looked_at_until_it_takes_writes(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(disk_watch, "_FIRST_WAIT_SECONDS", 0.001)
    says: list[Exception] = [PermissionError(errno.EACCES, "denied"), refusal(Reason.DISK_FAILED)]

    def probe() -> None:
        if says:
            raise says.pop()

    watch = DiskWatch(probe)
    watch.noticed(refusal(Reason.DISK_FAILED))
    async with asyncio.timeout(10):
        await watch.wait_for_change()
    assert (watch.takes_writes, says) == (True, [])
    await watch.close()


@pytest.mark.parametrize("reason", [Reason.STATE_LOCKED, Reason.WRONG_PHASE])
async def test_what_is_refused_for_another_reason_is_not_tried_again(reason: Reason):
    attempts: list[int] = []
    watch = DiskWatch(lambda: None)

    async def attempt() -> None:
        attempts.append(1)
        raise refusal(reason)

    with pytest.raises(FedLoraError) as caught:
        await watch.insist("a test", attempt)
    assert (caught.value.reason, len(attempts)) == (reason, 1)
    assert watch.takes_writes
