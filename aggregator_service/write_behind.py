"""Writes chunks in a thread while the next ones are on their way.

What has come while a write was under way is handed over together: with many uploads at once, most
of what a chunk costs beside its bytes is the way to a thread and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from aggregator_service.store.blobs import UploadWriter
from fedlora.wire.stream import Chunk

__all__ = ["WriteBehind"]

T = TypeVar("T")

_AT_ONCE = 2
"""chunks that one thread is handed"""

_MOST_CHUNKS = 2 * _AT_ONCE
"""in memory for one upload: as many are written as are on their way"""


class WriteBehind:
    """The chunks of one upload on their way to its writer, in order.

    Leaving the context, for whatever reason, waits until what was taken is written: after a cut
    nothing is sent again that was here.
    """

    def __init__(self, writer: UploadWriter) -> None:
        self._writer = writer
        self._waiting: list[Chunk] = []
        self._room = asyncio.Semaphore(_MOST_CHUNKS)
        self._writing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})
            # An error of its own is what led here, or comes second to it.
            self._writing.exception()

    async def write(self, chunk: Chunk) -> None:
        """Takes a chunk once there is room for it; raises what `UploadWriter.write` did before."""
        if self._room.locked():
            await self.meanwhile(self._room.acquire())
        else:
            await self._room.acquire()
        self._waiting.append(chunk)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_waiting())

    async def finish(self) -> None:
        """Waits until everything is written; raises what `UploadWriter.write` did."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def meanwhile(self, coming: Coroutine[Any, Any, T]) -> T:
        """What comes, unless a write fails first: a wrong chunk is refused at once."""
        if self._writing is None:
            return await coming
        arriving = asyncio.ensure_future(coming)
        try:
            if not self._writing.done():
                either: set[asyncio.Future[Any]] = {arriving, self._writing}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._writing.done():
                self._writing.result()
            return await arriving
        finally:
            if not arriving.done():
                arriving.cancel()
                await asyncio.wait({arriving})

    async def _write_waiting(self) -> None:
        while self._waiting:
            chunks, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            await asyncio.to_thread(self._write_all, chunks)
            for _ in chunks:
                self._room.release()

    def _write_all(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._writer.write(chunk.offset, chunk.data)
