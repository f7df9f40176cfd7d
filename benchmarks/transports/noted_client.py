"""The shipped client, which also notes when bytes left and came.

Of its calls only the two that carry payloads are looked at, message by message; what is sent and
received is what any worker sends and receives.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from client_worker.transport.client import FederationClient

__all__ = ["NotedClient"]


class NotedClient(FederationClient):
    """A worker's channel; times are those of `time.perf_counter`, one clock for all processes."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub: Any = _NotedStub(self._stub, self)
        self.last_byte_sent = 0.0
        """of the latest upload"""
        self.first_byte_received = 0.0
        """of the latest download"""


class _NotedStub:
    def __init__(self, stub: Any, client: NotedClient) -> None:
        self._stub = stub
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    @property
    def PushUpdate(self) -> _NotedPush:  # noqa: N802 - the stub's name
        return _NotedPush(self._stub.PushUpdate, self._client)

    def PullAdapter(self, request: Any, timeout: float) -> _NotedPull:  # noqa: N802
        return _NotedPull(self._stub.PullAdapter(request, timeout=timeout), self._client)


class _NotedPush:
    def __init__(self, method: Any, client: NotedClient) -> None:
        self._method = method
        self._client = client

    def future(self, messages: Iterable[Any], timeout: float) -> Any:
        return self._method.future(self._noted(messages), timeout=timeout)

    def _noted(self, messages: Iterable[Any]) -> Iterator[Any]:
        for message in messages:
            self._client.last_byte_sent = time.perf_counter()
            yield message


class _NotedPull:
    def __init__(self, responses: Any, client: NotedClient) -> None:
        self._responses = responses
        self._client = client

    def __iter__(self) -> Iterator[Any]:
        for number, message in enumerate(self._responses):
            if number == 0:
                self._client.first_byte_received = time.perf_counter()
            yield message

    def cancel(self) -> bool:
        cancelled: bool = self._responses.cancel()
        return cancelled
