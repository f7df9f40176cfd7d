"""Streams that stay open for days: what ends them when their clients do not.

gRPC keeps the stream of a client that is frozen, or has vanished without closing, and a server that
stops would wait for every one. Here they end, with an error, after a silence or as the server
leaves. One look at all of them now and then does it: a timer for each message would cost
a fifth of what the message costs (measured).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fedlora.errors import FedLoraError, Reason

__all__ = ["OpenStream", "OpenStreams"]

_LOOKS_A_SILENCE = 4


class OpenStream:
    """One of them; made in the task that serves it."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self.limit = asyncio.timeout(None)
        self.heard_at = self._clock()
        """of the event loop's clock"""

    def heard(self) -> None:
        """Notes a message."""
        self.heard_at = self._clock()

    def end(self) -> None:
        """Ends the wait for the next message."""
        if not self.limit.expired():
            self.limit.reschedule(self._clock())


class OpenStreams:
    """All of a server.

    Args:
        silence_seconds: longest time without a message, give or take a quarter.
        check_serving: raises once the server is leaving.
    """

    def __init__(self, *, silence_seconds: float, check_serving: Callable[[], None]) -> None:
        self._silence = silence_seconds
        self._check_serving = check_serving
        self._streams: set[OpenStream] = set()
        self._next_look: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Ends all of them, as the server leaves."""
        for stream in self._streams:
            stream.end()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[OpenStream]:
        """A stream, for as long as it is served.

        Raises:
            FedLoraError: DEADLINE_EXCEEDED after a silence, or what `check_serving` raises.
        """
        self._check_serving()
        stream = OpenStream()
        self._streams.add(stream)
        if self._next_look is None:
            self._look_later()
        try:
            async with stream.limit:
                yield stream
        except TimeoutError as error:
            self._check_serving()
            raise FedLoraError(
                Reason.DEADLINE_EXCEEDED,
                f"a message was expected within {self._silence:g} s, got none",
                hint="Open another stream",
            ) from error
        finally:
            self._streams.discard(stream)

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(self._silence / _LOOKS_A_SILENCE, self._look)

    def _look(self) -> None:
        latest = asyncio.get_running_loop().time() - self._silence
        for stream in self._streams:
            if stream.heard_at <= latest:
                stream.end()
        self._next_look = None
        if self._streams:
            self._look_later()
