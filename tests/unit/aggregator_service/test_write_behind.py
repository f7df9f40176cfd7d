"""Chunks are written in order beside the stream, and a wrong one ends it at once."""

from __future__ import annotations

import asyncio
import threading

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


async def test_messages_are_taken_while_a_chunk_is_written_up_to_a_few():
    writer = SlowWriter()
    async with WriteBehind(writer) as behind:
        for offset in range(4):
            await behind.write(chunk(offset))
        assert await behind.meanwhile(asyncio.sleep(0, "next")) == "next"
        assert writer.written == []
        fifth = asyncio.ensure_future(behind.write(chunk(4)))
        await asyncio.to_thread(writer.begun.acquire)
        assert not fifth.done(), "memory is bounded"
        writer.go.release(2)
        await fifth
        writer.go.release(3)
        await behind.finish()
        assert writer.written == [0, 1, 2, 3, 4]


async def test_a_wrong_chunk_is_noticed_while_nothing_comes():
    writer = SlowWriter(wrong=0)
    ended = asyncio.Event()

    async def silence() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(FedLoraError, match="wrong"):  # noqa: PT012
        async with WriteBehind(writer) as behind:
            await behind.write(chunk(0))
            writer.go.release()
            await behind.meanwhile(silence())
    assert ended.is_set()


@pytest.mark.parametrize("last", ["finish", "write"])
async def test_an_error_reaches_whoever_comes_next(last: str):
    writer = SlowWriter(wrong=0)
    writer.go.release(5)
    with pytest.raises(FedLoraError, match="wrong"):  # noqa: PT012
        async with WriteBehind(writer) as behind:
            await behind.write(chunk(0))
            for offset in range(1, 5):
                await (behind.finish() if last == "finish" else behind.write(chunk(offset)))
    assert writer.written == []


async def test_leaving_writes_what_was_taken_and_keeps_the_first_error():
    writer = SlowWriter()
    with pytest.raises(LookupError):  # noqa: PT012
        async with WriteBehind(writer) as behind:
            await behind.write(chunk(0))
            await asyncio.to_thread(writer.begun.acquire)
            await behind.write(chunk(1))
            threading.Timer(0.05, writer.go.release, (2,)).start()
            raise LookupError
    assert writer.written == [0, 1]
