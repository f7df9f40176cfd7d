"""How fast a transfer must move, and when it is given up.

A transfer ends when nothing has moved for `idle_timeout_seconds`, when it has fallen
`rate_seconds` behind the least rate, or when it has taken longer than all its bytes take at that
rate. Only time spent waiting for the peer counts towards the first two: a server that is busy with
what came is no fault of the peer's. gRPC's keepalive does none of this (measured): it does not end
the stream of a frozen client.

Behind, in seconds:  b(t) grows by the time waited, falls by n / r with n bytes, is never below 0;
                     r is the least rate in bytes a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeVar

from fedlora.errors import FedLoraError, Reason

__all__ = ["Pace", "PaceRules"]

T = TypeVar("T")

_RESUME = "Resume where it ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceRules:
    """What a transfer is held to."""

    idle_timeout_seconds: float
    """longest silence"""
    min_bytes_per_second: float
    """least rate"""
    rate_seconds: float
    """how far it may fall behind the least rate"""
    deadline_seconds: float
    """longest time for a whole transfer; 0 for what its bytes take at the least rate, and
    `rate_seconds` more"""

    def deadline_of(self, total_bytes: int) -> float:
        """Seconds that a transfer of so many bytes may take."""
        if self.deadline_seconds:
            return self.deadline_seconds
        return self.rate_seconds + total_bytes / self.min_bytes_per_second


class Pace:
    """One transfer, held to its pace.

    Args:
        rules: what it is held to.
        total_bytes: that it is to move.
        on_moved: told the bytes of each message.
    """

    def __init__(
        self,
        rules: PaceRules,
        total_bytes: int,
        *,
        on_moved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._rules = rules
        self._total_bytes = total_bytes
        self._on_moved = on_moved
        self._clock = asyncio.get_running_loop().time
        self._started = self._clock()
        self._behind = 0.0
        self._moved = 0
        self._waiting_since: float | None = None
        self._timer: asyncio.Timeout | None = None
        self._given_up: FedLoraError | None = None

    @property
    def seconds_behind(self) -> float:
        """How far it is behind the least rate; all of the time since the start if nothing moved."""
        waited = 0.0 if self._waiting_since is None else self._clock() - self._waiting_since
        return self._behind + waited

    @property
    def moved_bytes(self) -> int:
        """That have crossed the wire."""
        return self._moved

    @property
    def is_given_up(self) -> bool:
        """It has been told to end."""
        return self._given_up is not None

    def give_up(self, error: FedLoraError) -> None:
        """Ends the transfer with `error` at the next wait for its peer, or in the present one."""
        self._given_up = error
        if self._timer is not None:
            self._timer.reschedule(self._clock())

    def moved(self, num_bytes: int) -> None:
        """Counts bytes that have crossed the wire."""
        self._moved += num_bytes
        self._on_moved(num_bytes)
        self._behind = max(0.0, self._behind - num_bytes / self._rules.min_bytes_per_second)

    def took(self, num_bytes: int, seconds: float) -> None:
        """Counts a message that the peer made room for after so many seconds.

        For downloads: gRPC tells of a write when it is over, and ends no stream before.

        Raises:
            FedLoraError: UPLOAD_TOO_SLOW if it is too far behind the least rate with bytes left.
        """
        self._behind += seconds
        self.moved(num_bytes)
        if self._behind > self._rules.rate_seconds and self._moved < self._total_bytes:
            raise self._too_slow()

    async def wait(self, peer: Awaitable[T]) -> T:
        """What `peer` returns, if it does so in time.

        Raises:
            FedLoraError: UPLOAD_STALLED for silence, UPLOAD_TOO_SLOW for a low rate or a deadline,
                or what `give_up` was given.
        """
        rules, now = self._rules, self._clock()
        ends = (
            (now + rules.idle_timeout_seconds, self._stalled),
            (now + rules.rate_seconds - self._behind, self._too_slow),
            (self._started + rules.deadline_of(self._total_bytes), self._too_long),
        )
        first, error_of = min(ends, key=itemgetter(0))
        self._waiting_since = now
        try:
            async with asyncio.timeout_at(now if self._given_up else first) as self._timer:
                return await peer
        except TimeoutError as error:
            raise (self._given_up or error_of()) from error
        finally:
            self._behind, self._waiting_since, self._timer = self.seconds_behind, None, None

    async def follow(
        self, messages: AsyncIterator[T], size_of: Callable[[T], int]
    ) -> AsyncIterator[T]:
        """The messages of a stream, for as long as they keep the pace.

        Args:
            messages: of the peer.
            size_of: payload bytes in one of them.
        """
        while (message := await self.wait(anext(messages, None))) is not None:
            self.moved(size_of(message))
            yield message
            # Whoever falls silent must not keep the server's last look at a message in memory.
            del message

    def _stalled(self) -> FedLoraError:
        return FedLoraError(
            Reason.UPLOAD_STALLED,
            f"a message was expected within {self._rules.idle_timeout_seconds:g} s, got none",
            hint=_RESUME,
        )

    def _too_slow(self) -> FedLoraError:
        return FedLoraError(
            Reason.UPLOAD_TOO_SLOW,
            f"at least {self._rules.min_bytes_per_second:g} bytes a second were expected, got "
            f"{self._moved / (self._clock() - self._started):.0f}",
            hint=f"{_RESUME}; for lines that are no faster, lower server.min_bytes_per_second",
        )

    def _too_long(self) -> FedLoraError:
        return FedLoraError(
            Reason.UPLOAD_TOO_SLOW,
            f"{self._total_bytes} bytes were expected within "
            f"{self._rules.deadline_of(self._total_bytes):g} s, got {self._moved}",
            hint=f"{_RESUME}; or raise server.upload_deadline_seconds",
        )
