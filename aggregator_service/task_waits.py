"""Workers' calls that wait for a task, and which of them a change of the run concerns.

Most changes, such as another worker's update, give no waiting worker anything to do: with a
thousand of them, waking all each time would be most of what the server does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from aggregator_service.rounds.assignment import workers_with_tasks
from aggregator_service.rounds.state import RunState, WorkerRecord
from fedlora.errors import FedLoraError, Reason

__all__ = ["TaskWaits"]

_MOST_OF_A_WORKER = 8
"""calls that wait at a time; one is enough, and some may be left of connections that broke"""

_BACK_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class _Call:
    worker: str
    record: WorkerRecord
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class TaskWaits:
    """The calls of one run."""

    def __init__(self) -> None:
        self._calls: set[_Call] = set()
        self._num_of: Counter[str] = Counter()
        """by worker"""

    async def wait(self, worker: str, state: RunState, timeout_seconds: float) -> None:
        """Returns once the worker may have a task or its record has changed, or after the time.

        Args:
            worker: whose call it is.
            state: in which it has none.
            timeout_seconds: longest wait.

        Raises:
            FedLoraError: SERVER_BUSY where that many calls of the worker's wait already: each holds
                one of the places that the server has for the calls of all.
        """
        if self._num_of[worker] >= _MOST_OF_A_WORKER:
            raise FedLoraError(
                Reason.SERVER_BUSY,
                f"at most {_MOST_OF_A_WORKER} calls of worker {worker!r} may wait for a task at a "
                "time, this is one more",
                hint="Let one call end before the next begins",
                retry_seconds=_BACK_SECONDS,
            )
        call = _Call(worker, state.workers[worker])
        self._calls.add(call)
        self._num_of[worker] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await call.woken.wait()
        finally:
            self._calls.discard(call)
            self._num_of[worker] -= 1

    def wake_concerned(self, state: RunState) -> None:
        """Wakes the calls to which a new state of the run matters."""
        asked = workers_with_tasks(state)
        for call in self._calls:
            if call.worker in asked or state.workers[call.worker] is not call.record:
                call.woken.set()

    def wake_all(self) -> None:
        """Makes all of them look again."""
        for call in self._calls:
            call.woken.set()
