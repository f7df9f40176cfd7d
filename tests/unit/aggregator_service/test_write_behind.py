"""Chunks are written in order beside the stream, and a wrong one ends it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from aggregator_service.write_behind import WriteBehind
from fedlora.errors import FedLoraError, Reason
from fedlora.wire.stream import Chunk


class SlowWriter:
    """An UploadWriter that waits until it is told to go on."""

    def __init__(self, wrong: int | None = None) -> None:
        self.go, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[int] = []
        self._wrong = wrong

    def write(self, offset: int, data: memoryview) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if offset == self._wrong:
            raise FedLoraError(Reason.NOT_FINITE, "wrong")
        self.written.append(offset)


def chunk(offset: int) -> Chunk:
    return Chunk(offset, memoryview(b"x"))


async def stream(*messages: str) -> AsyncIterator[str]:
    for message in messages:
        yield message


async def test_the_next_message_is_awaited_while_a_chunk_is_written():
    writer = SlowWriter()
    async with WriteBehind(writer) as behind:
        await behind.write(chunk(0))
        assert await behind.next_of(stream("next")) == "next"
        assert await behind.next_of(stream()) is None
        assert writer.written == []
        second = asyncio.ensure_future(behind.write(chunk(1)))
        await asyncio.to_thread(writer.begun.acquire)
        assert not second.done(), "one chunk at a time"
        writer.go.release(2)
        await second
        await behind.finish()
        assert writer.written == [0, 1]


@pytest.mark.parametrize("has_failed_already", [False, True])
async def test_a_wrong_chunk_is_noticed_while_nothing_comes(has_failed_already: bool):
    writer = SlowWriter(wrong=0)
    ended = asyncio.Event()

    async def silence() -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
            yield "nothing"
        finally:
            ended.set()

    with pytest.raises(FedLoraError, match="wrong"):  # noqa: PT012
        async with WriteBehind(writer) as behind:
            await behind.write(chunk(0))
            writer.go.release()
            if has_failed_already:
                await asyncio.wait({behind._writing})
            await asyncio.wait_for(behind.next_of(silence()), 20)
    assert has_failed_already or ended.is_set()


@pytest.mark.parametrize("last", ["finish", "write"])
async def test_an_error_reaches_whoever_comes_next(last: str):
    writer = SlowWriter(wrong=0)
    writer.go.release(2)
    with pytest.raises(FedLoraError, match="wrong"):  # noqa: PT012
        async with WriteBehind(writer) as behind:
            await behind.write(chunk(0))
            await (behind.finish() if last == "finish" else behind.write(chunk(1)))
    assert writer.written == []


async def test_leaving_waits_for_the_write_under_way_and_keeps_the_first_error():
    writer = SlowWriter(wrong=0)
    with pytest.raises(LookupError):  # noqa: PT012
        async with WriteBehind(writer) as behind:
            await behind.write(chunk(0))
            threading.Timer(0.05, writer.go.release).start()
            raise LookupError
    assert writer.go.acquire(blocking=False) is False, "the write took its turn"
