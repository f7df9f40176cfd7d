"""Whether the state directory takes writes: noticed by those that fail, looked at until it does.

A full or failing disk refuses work, and loses none: whoever sent an update keeps it and asks again,
and what the server itself was doing it tries again. Meanwhile health says NOT_SERVING, so that
nobody new is sent here; that it is over is found by a write of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from fedlora.errors import FedLoraError, Reason

__all__ = ["DISK_REFUSES", "DiskWatch"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

DISK_REFUSES = frozenset({Reason.OUT_OF_SPACE, Reason.DISK_FAILED})
"""reasons that lie with the state directory; what it refuses may be tried again later"""

_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0
"""somebody has freed space: soon enough to find out"""


class DiskWatch:
    """Knows whether the disk takes writes.

    Args:
        probe: writes durably into the state directory; raises OUT_OF_SPACE or DISK_FAILED.
    """

    def __init__(self, probe: Callable[[], None]) -> None:
        self._probe = probe
        self._looking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def takes_writes(self) -> bool:
        """Whether it did when it was last asked."""
        return self._looking is None

    async def wait_for_change(self) -> None:
        """Returns once `takes_writes` may be another."""
        await self._changed.wait()

    def noticed(self, error: FedLoraError) -> None:
        """Tells of a write that failed; any other error is none of its business."""
        if error.reason in DISK_REFUSES and self._looking is None:
            log.warning("disk_refuses", reason=error.reason.value, error=str(error))
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._notify()

    async def insist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns, once the disk lets it.

        Raises:
            FedLoraError: the attempt's own, for any other reason.
        """
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                return await attempt()
            except FedLoraError as error:
                if error.reason not in DISK_REFUSES:
                    raise
                self.noticed(error)
                log.warning("tried_again", what=what, after_seconds=wait, error=str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    async def close(self) -> None:
        """Ends the looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        wait = _FIRST_WAIT_SECONDS
        while True:
            await asyncio.sleep(wait)
            try:
                await asyncio.to_thread(self._probe)
            except (FedLoraError, OSError) as error:
                log.debug("disk_still_refuses", error=str(error))
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            else:
                break
        log.info("disk_takes_writes")
        self._looking = None
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
