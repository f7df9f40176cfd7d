"""Which uploads may run at once, and who is next.

    comes -> place free: runs | else waits a little -> its turn: runs
                                                    -> SERVER_BUSY: come back in n seconds

Every upload that runs may fill its stream's flow-control window, and one that waits, too: their
numbers bound the server's memory. First come, first served, by worker: one that was refused keeps
its place in line for as long as it is expected back. A worker has one upload at a time.

Where all places are taken, one whose peer has fallen behind goes to the first in line. How far
behind is chosen such that nobody who keeps the least rate ever loses a place. A newer stream of the
same worker takes the place of its own silent one much sooner: the worker has moved on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from aggregator_service.pace import Pace
from fedlora.errors import FedLoraError, Reason

__all__ = ["Admission", "AdmissionRules", "Line", "Owner"]

Owner: TypeAlias = tuple[str, str]
"""run and worker"""

_REPLACED_SECONDS = 1.0
"""silence after which a worker's newer stream takes the place of its older one"""

_LOOK_SECONDS = 0.1
"""how often it is looked whether somebody has fallen behind, while others wait"""

_BACK_SECONDS = 1.0
"""after which one that is next in line should ask again"""

_LONGEST_BACK_SECONDS = 30.0

_KEPT = 3.0
"""a place in line is kept for so many times as long as its worker was told to wait"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """How much may come in at once."""

    max_uploads: int
    """uploads that run"""
    max_bytes: int
    """their declared sizes together; a single larger one runs alone"""
    max_waiting: int
    """streams that wait here for their turn, beside those that run"""
    wait_seconds: float
    """for how long they do"""
    behind_seconds: float
    """an upload so far behind the least rate gives its place to one that waits"""


class Line:
    """Who came when."""

    def __init__(self) -> None:
        self._kept_until: dict[Owner, float] = {}

    def join(self, owner: Owner, now: float) -> None:
        """Takes a place at the end, or the one that was kept; those that stayed away lose theirs.

        Args:
            owner: who comes.
            now: seconds on any one clock.
        """
        for other, until in list(self._kept_until.items()):
            if until < now:
                del self._kept_until[other]
        self._kept_until[owner] = math.inf

    def keep(self, owner: Owner, until: float) -> None:
        """Keeps the place of one that goes away."""
        self._kept_until[owner] = until

    def leave(self, owner: Owner) -> None:
        """Gives the place up, if there is one."""
        self._kept_until.pop(owner, None)

    def num_ahead(self, owner: Owner) -> int:
        """How many came before."""
        return list(self._kept_until).index(owner)

    def in_order(self, present: Container[Owner]) -> list[Owner]:
        """Those of the line who are here, first come first."""
        return [owner for owner in self._kept_until if owner in present]


@dataclass(slots=True)
class _Waiting:
    num_bytes: int
    pace: Pace
    turn: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(slots=True)
class _Running:
    num_bytes: int
    pace: Pace


class Admission:
    """Gives uploads their turn.

    Args:
        rules: how much may come in at once.
        clock: seconds, for places that are kept in line.
    """

    def __init__(self, rules: AdmissionRules, clock: Callable[[], float]) -> None:
        self._rules = rules
        self._clock = clock
        self._line = Line()
        self._running: dict[Owner, _Running] = {}
        self._waiting: dict[Owner, _Waiting] = {}
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def num_running(self) -> int:
        """Uploads that have a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Streams that wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, owner: Owner, num_bytes: int, pace: Pace) -> AsyncIterator[None]:
        """Holds a place for an upload.

        Args:
            owner: whose.
            num_bytes: that it declares.
            pace: tells how far behind it is, and is told to give up.

        Raises:
            FedLoraError: SERVER_BUSY with the time after which to try again, UNAVAILABLE if the
                worker's own other stream goes on or a newer one has come.
        """
        waiting = _Waiting(num_bytes, pace)
        self._arrive(owner, waiting)
        try:
            await asyncio.wait({waiting.turn}, timeout=self._rules.wait_seconds)
            if not waiting.turn.done():
                self._refuse(owner)
            waiting.turn.result()
            yield
        finally:
            self._depart(owner, waiting)

    def _arrive(self, owner: Owner, waiting: _Waiting) -> None:
        if owner in self._waiting:
            self._waiting.pop(owner).turn.set_exception(_superseded())
        self._waiting[owner] = waiting
        self._line.join(owner, self._clock())
        self._look()
        if len(self._waiting) > self._rules.max_waiting:
            self._refuse(self._line.in_order(self._waiting)[-1])

    def _depart(self, owner: Owner, waiting: _Waiting) -> None:
        running = self._running.get(owner)
        if running is not None and running.pace is waiting.pace:
            del self._running[owner]
            if heir := self._waiting.get(owner):
                self._admit(owner, heir)
        elif self._waiting.get(owner) is waiting:  # cancelled before its turn
            del self._waiting[owner]
            self._line.leave(owner)
        self._look()

    def _refuse(self, owner: Owner) -> None:
        waiting = self._waiting.pop(owner)
        if owner in self._running:
            self._line.leave(owner)
            waiting.turn.set_exception(_other_stream())
            return
        ahead = self._line.num_ahead(owner)
        back = min(_BACK_SECONDS * (1 + ahead // self._rules.max_uploads), _LONGEST_BACK_SECONDS)
        self._line.keep(owner, self._clock() + _KEPT * back)
        taken = sum(running.num_bytes for running in self._running.values())
        waiting.turn.set_exception(
            FedLoraError(
                Reason.SERVER_BUSY,
                f"{self._rules.max_uploads} uploads of {self._rules.max_bytes} bytes are taken at a"
                f" time; {len(self._running)} of {taken} bytes are under way and {ahead} are before"
                f" this one of {waiting.num_bytes}",
                hint=f"Come back in {back:g} s: the place in line is kept",
                retry_seconds=back,
            )
        )

    def _look(self) -> None:
        """Gives turns to whoever may have one, and makes room for who waits."""
        num_blocked = 0
        for owner in self._line.in_order(self._waiting):
            waiting = self._waiting[owner]
            if own := self._running.get(owner):
                if own.pace.seconds_behind >= _REPLACED_SECONDS and not own.pace.is_given_up:
                    own.pace.give_up(_superseded())
            elif num_blocked == 0 and self._fits(waiting.num_bytes):
                self._admit(owner, waiting)
            else:
                num_blocked += 1
        self._make_room(num_blocked)
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = None
        if self._waiting:
            loop = asyncio.get_running_loop()
            self._next_look = loop.call_later(_LOOK_SECONDS, self._look)

    def _fits(self, num_bytes: int) -> bool:
        taken = sum(running.num_bytes for running in self._running.values())
        return not self._running or (
            len(self._running) < self._rules.max_uploads
            and taken + num_bytes <= self._rules.max_bytes
        )

    def _admit(self, owner: Owner, waiting: _Waiting) -> None:
        del self._waiting[owner]
        self._line.leave(owner)
        self._running[owner] = _Running(waiting.num_bytes, waiting.pace)
        waiting.turn.set_result(None)

    def _make_room(self, num_wanted: int) -> None:
        """Ends the uploads that are farthest behind, as many as others wait for."""
        paces = [running.pace for running in self._running.values()]
        num_leaving = sum(pace.is_given_up for pace in paces)
        behind = [
            pace
            for pace in paces
            if not pace.is_given_up and pace.seconds_behind >= self._rules.behind_seconds
        ]
        behind.sort(key=lambda pace: pace.seconds_behind, reverse=True)
        for pace in behind[: max(0, num_wanted - num_leaving)]:
            pace.give_up(
                FedLoraError(
                    Reason.UPLOAD_STALLED,
                    f"others wait for this upload's place, and it was expected to be less than "
                    f"{self._rules.behind_seconds:g} s behind the least rate, got "
                    f"{pace.seconds_behind:.1f} s",
                    hint="Resume where it ended",
                )
            )


def _superseded() -> FedLoraError:
    return FedLoraError(
        Reason.UNAVAILABLE,
        "a newer stream of this worker has come",
        hint="Let one stream end before the next begins",
    )


def _other_stream() -> FedLoraError:
    return FedLoraError(
        Reason.UNAVAILABLE,
        "another stream of this worker is still sending",
        hint="Try again when it has ended",
    )
