"""One gRPC call each: with a deadline, open to being cancelled, its errors turned into ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import grpc

from fedlora.errors import FedLoraError, Reason
from fedlora.rpc.status import from_rpc_error

__all__ = [
    "CONTROL_SECONDS",
    "Guard",
    "Method",
    "Responses",
    "call",
    "converting",
    "stream",
    "transfer_seconds",
    "unguarded",
]

R = TypeVar("R", covariant=True)
M = TypeVar("M")

Guard = Callable[[Callable[[], object]], AbstractContextManager[None]]
"""is given what cancels a call, and runs the call such that it can be"""

CONTROL_SECONDS = 20.0
"""deadline of a small call: gRPC's own retries take 3 s at most, a busy server's disk some more"""

_TRANSFER_FLOOR_SECONDS = 60.0


class _Call(Protocol[R]):
    def result(self) -> R: ...
    def cancel(self) -> bool: ...


class Method(Protocol[R]):
    """A method of a stub that has one response."""

    def future(self, request: Any, timeout: float | None = None) -> _Call[R]:
        """Begins a call."""
        ...


class Responses(Protocol[R]):
    """A response stream of a stub."""

    def __iter__(self) -> Iterator[R]:
        """The messages, as they come."""
        ...

    def cancel(self) -> bool:
        """Ends the stream."""
        ...


def unguarded(cancel: Callable[[], object]) -> AbstractContextManager[None]:  # noqa: ARG001
    """The guard that never cancels."""
    return nullcontext()


def transfer_seconds(num_bytes: int, bytes_per_second: float) -> float:
    """Deadline of a stream of `num_bytes` over a link of that rate."""
    return _TRANSFER_FLOOR_SECONDS + num_bytes / bytes_per_second


def call(method: Method[M], request: Any, *, seconds: float, peer: str, guard: Guard) -> M:
    """The response to one request, or to a stream of them.

    Args:
        method: of a stub, with one response.
        request: a message, or an iterator of messages.
        seconds: deadline.
        peer: address, for errors.
        guard: may cancel the call.

    Raises:
        FedLoraError: what the server raised, or the nearest to what went wrong on the way.
    """
    try:
        pending = method.future(request, timeout=seconds)
    except ValueError as error:
        # A thread that outlived the connection by the length of a call, such as the heartbeats'.
        raise FedLoraError(Reason.UNAVAILABLE, f"the connection to {peer} is closed") from error
    with guard(pending.cancel), _errors(peer):
        return pending.result()


@contextmanager
def stream(responses: Responses[M], *, peer: str, guard: Guard) -> Iterator[Iterator[M]]:
    """The messages of a response stream, cancelled on leaving wherever it stands.

    Raises:
        FedLoraError: from the iterator, as `call` does.
    """
    with guard(responses.cancel):
        try:
            yield converting(responses, peer)
        finally:
            responses.cancel()


def converting(responses: Iterable[M], peer: str) -> Iterator[M]:
    """The messages of a response stream, its errors turned into ours; see `call`."""
    with _errors(peer):
        yield from responses


@contextmanager
def _errors(peer: str) -> Iterator[None]:
    try:
        yield
    except grpc.FutureCancelledError as error:
        raise FedLoraError(Reason.UNAVAILABLE, f"the call to {peer} was cancelled") from error
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer=peer) from error
