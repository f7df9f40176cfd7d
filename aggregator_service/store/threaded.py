"""The store's one thread: the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aggregator_service.rounds.ports import StateStore

__all__ = ["ThreadedStore"]

T = TypeVar("T")


class ThreadedStore:
    """Runs every call of a StateStore in one thread, in the order in which they were made.

    Args:
        open_store: opens the store; called in that thread, since SQLite's connections belong to
            the thread that made them.
    """

    def __init__(self, open_store: Callable[[], StateStore]) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._store = self._executor.submit(open_store).result()

    async def call(self, work: Callable[[StateStore], T]) -> T:
        """Runs `work` with the store and returns what it returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, self._store)

    def close(self) -> None:
        """Closes the store once all calls made so far are done."""
        self._executor.submit(self._store.close).result()
        self._executor.shutdown()
