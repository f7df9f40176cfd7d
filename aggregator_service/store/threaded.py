"""The store's one thread: the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aggregator_service.rounds.ports import StateStore
from fedlora.errors import FedLoraError, Reason

__all__ = ["ThreadedStore"]

T = TypeVar("T")


class ThreadedStore:
    """Runs every call of a StateStore in one thread, in the order in which they were made.

    Args:
        open_store: opens the store; called in that thread, since SQLite's connections belong to
            the thread that made them.
        on_fenced: called once, in that thread, when a newer server owns the state.
        on_error: told, on the event loop, what a call raises.
    """

    def __init__(
        self,
        open_store: Callable[[], StateStore],
        *,
        on_fenced: Callable[[], object] = lambda: None,
        on_error: Callable[[FedLoraError], object] = lambda _: None,
    ) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._store = self._executor.submit(open_store).result()
        self._on_fenced = on_fenced
        self._on_error = on_error
        self._fenced = False

    async def call(self, work: Callable[[StateStore], T]) -> T:
        """Runs `work` with the store and returns what it returns."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self._run, work)
        except FedLoraError as error:
            self._on_error(error)
            raise

    def close(self) -> None:
        """Closes the store once all calls made so far are done."""
        self._executor.submit(self._store.close).result()
        self._executor.shutdown()

    def _run(self, work: Callable[[StateStore], T]) -> T:
        try:
            return work(self._store)
        except FedLoraError as error:
            if error.reason is Reason.STATE_LOCKED and not self._fenced:
                self._fenced = True
                self._on_fenced()
            raise
