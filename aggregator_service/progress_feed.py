"""How far a run's workers have got, for whoever watches it meanwhile: nothing of it is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedlora.runs.report import RunEvent

__all__ = ["ProgressFeed"]


class ProgressFeed:
    """A slow reader misses some, nobody waits for it."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[RunEvent]] = set()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[asyncio.Queue[RunEvent]]:
        """Progress events as they come, of which the newest are kept."""
        queue: asyncio.Queue[RunEvent] = asyncio.Queue(maxsize=256)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def publish(self, event: RunEvent) -> None:
        """Tells all that are subscribed."""
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)
