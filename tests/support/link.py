"""How bad a link is, and when a piece of data that enters it comes out.

TCP hides loss: a receiver never sees a gap, it sees a pause until the segment has been sent again,
and everything behind it waits as well. So `loss` here is the chance that a piece is held back by
one retransmission timeout.
"""

from __future__ import annotations

import asyncio
import enum
import random
from dataclasses import dataclass

__all__ = ["Conditions", "Link", "Pacer", "Way"]


class Way(enum.Enum):
    """A direction."""

    UP = "client to server"
    DOWN = "server to client"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Of one direction; the defaults are a perfect link."""

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """the delay varies by up to this much, both ways"""
    bytes_per_second: float = 0.0
    """0 for no limit"""
    loss: float = 0.0
    """chance of a piece to be held back"""
    retransmission_seconds: float = 0.2
    """for how long: the shortest timeout of Linux"""


class Pacer:
    """One direction of one connection.

    Args:
        rng: of this direction alone, so that equal seeds give equal links.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._sent_by = 0.0
        self._arrived_by = 0.0
        self.num_stalls = 0

    def arrival(self, conditions: Conditions, num_bytes: int, now: float) -> float:
        """When a piece that is sent now comes out; never before the piece ahead of it."""
        begin = max(now, self._sent_by)
        rate = conditions.bytes_per_second
        self._sent_by = begin + (num_bytes / rate if rate else 0.0)
        jitter = conditions.jitter_seconds
        way = conditions.delay_seconds + self._rng.uniform(-jitter, jitter)
        if self._rng.random() < conditions.loss:
            self.num_stalls += 1
            way += conditions.retransmission_seconds
        self._arrived_by = max(self._arrived_by, self._sent_by + max(0.0, way))
        return self._arrived_by


class Link:
    """What all connections over one link share; changed by a test at any time."""

    def __init__(self) -> None:
        self.conditions = dict.fromkeys(Way, Conditions())
        self._passing = {way: asyncio.Event() for way in Way}
        self._changed = asyncio.Event()
        self.release()

    def set(self, conditions: Conditions, *ways: Way) -> None:
        """Gives directions, or both, other conditions."""
        self.conditions |= dict.fromkeys(ways or Way, conditions)

    def hold(self, *ways: Way) -> None:
        """Nothing comes out of these directions, or of both, any more."""
        for way in ways or Way:
            self._passing[way].clear()

    def release(self) -> None:
        """What was held back comes out."""
        for passing in self._passing.values():
            passing.set()

    async def may_pass(self, way: Way) -> None:
        """Returns once data of a direction may come out."""
        await self._passing[way].wait()

    def notify(self) -> None:
        """Something has happened."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_change(self) -> None:
        """Returns when something happens."""
        changed = self._changed
        await changed.wait()
