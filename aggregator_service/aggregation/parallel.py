"""Modules side by side, one thread each.

The matrices of one module are too thin for a BLAS to share well among threads, and modules have
nothing to do with each other. So on a CPU every thread takes one module at a time and computes it
alone. It also makes the bits of a result independent of how many threads there are, which no BLAS
promises. A CUDA device is parallel by itself and gets one module after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from fedlora.process_limits import available_cores

__all__ = ["in_order", "own_thread"]

T = TypeVar("T")
R = TypeVar("R")

_WORTH = 2**20
"""numbers; below, threads wait for the interpreter as long as they work (measured)"""


def in_order(
    work: Callable[[T], R],
    items: Sequence[T],
    *,
    device: torch.device | str,
    threads: int = 0,
    size: int | None = None,
) -> Generator[R]:
    """What `work` makes of each item, in their order, a few ahead of whoever asks.

    To be closed by whoever does not ask to the end: its threads use what the caller holds open.

    Args:
        work: called in threads of its own, with torch on one thread.
        items: what to work on.
        device: where torch computes; anything but a CPU is not shared.
        threads: items at a time; 0 for as many as torch would use.
        size: numbers that an item is made of, where few calls go through them: small ones are
            worked on one at a time. None: threads pay for any.
    """
    if torch.device(device).type != "cpu":
        yield from map(work, items)
        return
    count = threads or torch.get_num_threads()
    if size is not None and size < _WORTH:
        count = 1
    pool = ThreadPoolExecutor(count, "module", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            # Results wait for their turn in memory: never more of them than are being made.
            if len(waiting) >= 2 * count:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def own_thread(name: str) -> ThreadPoolExecutor:
    """One thread, from which torch uses as many as from where this is called.

    At most the cores of the container, of which torch does not know. A thread that nobody has told
    takes the number that was set last in any other: the 1 of `in_order`, if modules have been
    worked on by then.
    """
    whole = min(torch.get_num_threads(), available_cores())
    return ThreadPoolExecutor(1, name, initializer=torch.set_num_threads, initargs=(whole,))
