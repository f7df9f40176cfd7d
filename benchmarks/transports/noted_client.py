"""The shipped client over a channel that notes when bytes left and came.

Only the two streams that carry payloads are looked at, message by message; what is sent and
received is what any worker sends and receives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from client_worker.transport.client import FederationClient
from fedlora.rpc.security import PLAIN_TEXT

__all__ = ["NotedClient"]


class NotedClient(FederationClient):
    """A worker's client; times are those of `time.perf_counter`, one clock for all processes."""

    def __init__(self, address: str) -> None:
        self._notes = _Notes()
        super().__init__(address, dialler=_Noting(self._notes))

    @property
    def last_byte_sent(self) -> float:
        """Of the latest upload."""
        return self._notes.last_sent

    @property
    def first_byte_received(self) -> float:
        """Of the latest download."""
        return self._notes.first_received


class _Noting:
    """Dials with notes being taken."""

    def __init__(self, notes: _Notes) -> None:
        self._notes = notes

    def dial(self, address: str) -> grpc.Channel:
        return grpc.intercept_channel(PLAIN_TEXT.dial(address), self._notes)

    def stamp(self) -> object:
        return PLAIN_TEXT.stamp()


class _Notes(grpc.StreamUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Times of the latest messages."""

    last_sent = 0.0
    first_received = 0.0

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], details: Any, messages: Iterable[Any]
    ) -> Any:
        return continuation(details, self._sending(messages))

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        return _Received(continuation(details, request), self)

    def _sending(self, messages: Iterable[Any]) -> Iterator[Any]:
        for message in messages:
            self.last_sent = time.perf_counter()
            yield message


class _Received:
    """A response stream whose first message is noted."""

    def __init__(self, call: Any, notes: _Notes) -> None:
        self._call, self._notes = call, notes

    def __iter__(self) -> Iterator[Any]:
        for number, message in enumerate(self._call):
            if number == 0:
                self._notes.first_received = time.perf_counter()
            yield message

    def cancel(self) -> bool:
        cancelled: bool = self._call.cancel()
        return cancelled
