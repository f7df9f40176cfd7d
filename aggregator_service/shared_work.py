"""Work whose result many ask for at about the same time: it is done once for all of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["SharedWork"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedWork(Generic[K, V]):
    """Results by what they are of.

    What has failed is done again for the next that asks.

    Args:
        kept: results that are kept; those asked for last.
        on_dropped: told of a result that is kept no longer.
    """

    def __init__(self, kept: int, *, on_dropped: Callable[[V], object] = lambda _: None) -> None:
        self._kept_results = kept
        self._on_dropped = on_dropped
        self._results: OrderedDict[K, asyncio.Task[V]] = OrderedDict()

    def __len__(self) -> int:
        """Results that are here or on their way."""
        return len(self._results)

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[V]:
        """The task that makes a result, or has made it; shield it where you wait for it.

        Args:
            key: says what the result is of.
            work: makes it, if nobody has.
        """
        task = self._results.get(key)
        # One that has failed just now is still here until the loop comes to its callback.
        if task is None or _has_failed(task):
            task = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda done: self._forget_failed(key, done))
            self._results[key] = task
            if len(self._results) > self._kept_results:
                _, dropped = self._results.popitem(last=False)
                # It may still be on its way.
                dropped.add_done_callback(self._drop)
        self._results.move_to_end(key)
        return task

    def _drop(self, done: asyncio.Task[V]) -> None:
        if not _has_failed(done):
            self._on_dropped(done.result())

    def _forget_failed(self, key: K, done: asyncio.Task[V]) -> None:
        if _has_failed(done) and self._results.get(key) is done:
            del self._results[key]


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
