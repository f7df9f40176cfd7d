"""Errors on their way to a peer: ours with their reason, mistakes without any detail."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog

from fedlora.errors import FedLoraError, Reason
from fedlora.rpc.status import to_status
from fedlora.wire.payload import Unreadable

__all__ = ["Context", "abort", "answering", "streaming"]

log = structlog.get_logger(__name__)

R = TypeVar("R")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""the stubs' ServicerContext takes arguments, the class at run time does not"""


def answering(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Wraps a servicer method that returns one message."""

    @functools.wraps(method)
    async def wrapper(self: Any, request: Any, context: Context) -> R:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001 - the boundary: nothing of ours may leak
            await _abort(context, error, method.__name__)

    return wrapper


def streaming(method: Callable[..., AsyncIterator[R]]) -> Callable[..., AsyncIterator[R]]:
    """Wraps a servicer method that yields messages."""

    @functools.wraps(method)
    async def wrapper(self: Any, request: Any, context: Context) -> AsyncIterator[R]:
        try:
            async for message in method(self, request, context):
                yield message
        except Exception as error:  # noqa: BLE001 - the boundary: nothing of ours may leak
            await _abort(context, error, method.__name__)

    return wrapper


async def _abort(context: Context, error: Exception, method: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        raise error
    if isinstance(error, Unreadable):
        # Of a stream; that of a call with one message gRPC refuses itself, as UNKNOWN.
        error = FedLoraError(
            Reason.INVALID_ARGUMENT, f"a message of this stream cannot be read: {error}"
        )
    if isinstance(error, FedLoraError):
        log.info("refused", method=method, reason=error.reason.value, error=str(error))
    else:
        log.error("internal_error", method=method, exc_info=error)
        error = FedLoraError(
            Reason.INTERNAL, "internal error", hint="The server's log has the details"
        )
    await abort(context, error)


async def abort(context: Context, error: FedLoraError) -> NoReturn:
    """Ends a call with an error that its peer may read."""
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata or ())
