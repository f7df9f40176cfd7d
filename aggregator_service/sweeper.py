"""Takes away the files that nobody reads any more, behind the runs and never in their way.

An update is read at its round's close and once more for its certificate. After that, and once
`keep_rounds` newer rounds have begun, it is dropped: written down as such, durably, and only then
is its file taken away. With it go what a method remembered for rounds as old, copies of versions at
the ranks that workers asked for, and whatever a server that was killed had made and nobody named.
Published versions stay, and so does what the database says of every update, with its digest.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Collection, Sequence

import structlog

from aggregator_service.failpoints import Failpoint, reach
from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import RunState
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import RoundReport, RunEvent

__all__ = ["Sweeper"]

log = structlog.get_logger(__name__)

_SHARE = 0.1
"""of the time; listing files takes longer the more there are"""

_ROUNDS_AT_A_TIME = 100
"""dropped in one call of the store, behind which an update may wait"""

_LEAST_WAIT_SECONDS = 0.1
_REFUSED_WAIT_SECONDS = 60.0


class Sweeper:
    """Sweeps whenever rounds have begun or been completed or certified.

    An Observer, made on the event loop.

    Args:
        store: knows what is named, and is told what is dropped.
        blobs: the files.
        keep_rounds: how many rounds' updates are kept, 0 for all.
    """

    def __init__(self, store: ThreadedStore, blobs: BlobStore, *, keep_rounds: int) -> None:
        self._store, self._blobs, self._keep_rounds = store, blobs, keep_rounds
        self._loop = asyncio.get_running_loop()
        self._states: dict[str, RunState] = {}
        """by run"""
        self._due = asyncio.Event()
        self._sweeping: asyncio.Task[None] | None = None

    def committed(
        self,
        state: RunState,
        events: Sequence[RunEvent],  # noqa: ARG002 - as Observer
        reports: Sequence[RoundReport],
    ) -> None:
        """See Observer."""
        before = self._states.get(state.run_id)
        self._states[state.run_id] = state
        # A round that begins after a wait comes with no report.
        if reports or before is None or before.round != state.round:
            self._due.set()

    def start(self, states: Sequence[RunState]) -> None:
        """Begins, with a sweep of what earlier servers have left.

        Args:
            states: of the stored runs.
        """
        self._states = {s.run_id: s for s in states} | self._states
        self._due.set()
        self._sweeping = self._loop.create_task(self._sweep_when_due())

    async def close(self) -> None:
        """Ends once the sweep under way is done."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def _sweep_when_due(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            began, least = time.monotonic(), _LEAST_WAIT_SECONDS
            try:
                await self._sweep()
            except FedLoraError as error:
                if error.reason is Reason.STATE_LOCKED:
                    # It belongs to another server, and so does what lies in it.
                    return
                log.warning("sweep_refused", reason=error.reason.value, error=str(error))
                self._due.set()
                least = _REFUSED_WAIT_SECONDS
            except Exception:
                log.exception("sweep_failed")
            took = time.monotonic() - began
            await asyncio.sleep(max(least, took / _SHARE))

    async def _sweep(self) -> None:
        for state in list(self._states.values()):
            drop = functools.partial(_drop, state, self._keep_rounds)
            while await self._store.call(drop):
                pass
        sweeping = asyncio.ensure_future(asyncio.to_thread(self._blobs.sweep, self._named))
        try:
            swept = await asyncio.shield(sweeping)
        except asyncio.CancelledError:
            # The thread goes on, and asks the store, which is closed after this.
            await asyncio.wait({sweeping})
            sweeping.exception()
            raise
        if swept.num_files:
            log.info("swept", files=swept.num_files, bytes=swept.total_bytes)

    def _named(self) -> Collection[str]:
        asked = self._store.call(lambda store: store.named_blobs())
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()


def _drop(state: RunState, keep_rounds: int, store: StateStore) -> bool:
    """Drops updates of rounds that are old enough and wait for no certificate; whether any were."""
    if not keep_rounds:
        return False
    run_id = state.run_id
    waiting = {round for round in store.uncertified_rounds(run_id) if state.certifies(round)}
    last = state.round - keep_rounds
    done = [r for r in store.kept_rounds(run_id) if r <= last and r not in waiting]
    if done:
        store.drop_updates(run_id, done[:_ROUNDS_AT_A_TIME])
        reach(Failpoint.UPDATES_DROPPED)
    return bool(done)
