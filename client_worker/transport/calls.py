"""One gRPC call each: with a deadline, cancelled when the caller is interrupted, errors as ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import grpc

from fedlora.errors import FedLoraError, Reason
from fedlora.rpc.status import from_rpc_error

__all__ = ["CONTROL_SECONDS", "Method", "call", "stream", "transfer_seconds"]

R = TypeVar("R", covariant=True)
M = TypeVar("M")

CONTROL_SECONDS = 20.0
"""deadline of a small call: gRPC's own retries take 3 s at most, a busy server's disk some more"""

_TRANSFER_FLOOR_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 64 * 1024
"""the server gives up slower uploads"""


class _Call(Protocol[R]):
    def result(self) -> R: ...
    def cancel(self) -> bool: ...


class Method(Protocol[R]):
    """A method of a stub that has one response."""

    def future(self, request: Any, timeout: float | None = None) -> _Call[R]:
        """Begins a call."""
        ...


def transfer_seconds(num_bytes: int) -> float:
    """Deadline of a stream of `num_bytes`: that of the slowest link that is any use."""
    return _TRANSFER_FLOOR_SECONDS + num_bytes / _SLOWEST_BYTES_PER_SECOND


def call(method: Method[M], request: Any, *, seconds: float, peer: str) -> M:
    """The response to one request, or to a stream of them.

    Args:
        method: of a stub, with one response.
        request: a message, or an iterator of messages.
        seconds: deadline.
        peer: address, for errors.

    Raises:
        FedLoraError: what the server raised, or the nearest to what went wrong on the way.
    """
    with _errors(peer):
        pending = method.future(request, timeout=seconds)
        try:
            return pending.result()
        except BaseException:
            # A signal that interrupts the wait, too, must not leave a call under way.
            pending.cancel()
            raise


@contextmanager
def stream(responses: Iterable[M], *, peer: str) -> Iterator[Iterator[M]]:
    """The messages of a response stream, cancelled on leaving wherever it stands.

    Raises:
        FedLoraError: from the iterator, as `call` does.
    """
    try:
        yield _converting(responses, peer)
    finally:
        cancel = getattr(responses, "cancel", None)
        if cancel is not None:
            cancel()


def _converting(responses: Iterable[M], peer: str) -> Iterator[M]:
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
