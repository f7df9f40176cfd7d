"""Writes a chunk in a thread while the next one is on its way: at most one of each in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar

from aggregator_service.store.upload_writer import UploadWriter
from fedlora.wire.stream import Chunk

__all__ = ["WriteBehind"]

T = TypeVar("T")


class WriteBehind:
    """The chunks of one upload on their way to its writer, in order.

    Leaving the context waits for the write that is under way, so that the writer can be ended.
    """

    def __init__(self, writer: UploadWriter) -> None:
        self._writer = writer
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
        """Begins to write a chunk once the one before is written, whose errors it raises."""
        await self.finish()
        self._writing = asyncio.ensure_future(
            asyncio.to_thread(self._writer.write, chunk.offset, chunk.data)
        )

    async def finish(self) -> None:
        """Waits until everything is written; raises what `UploadWriter.write` did."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def next_of(self, messages: AsyncIterator[T]) -> T | None:
        """The next message, None at the end, unless the write before fails first.

        So a wrong chunk is refused at once, also where nothing more comes.
        """
        if self._writing is None or self._writing.done():
            await self.finish()
            return await anext(messages, None)
        arriving = asyncio.ensure_future(anext(messages, None))
        try:
            either: set[asyncio.Future[Any]] = {arriving, self._writing}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._writing.done():
                self._writing.result()
            return await arriving
        finally:
            if not arriving.done():
                arriving.cancel()
                await asyncio.wait({arriving})
