"""Tells a Telemetry of every call: method, code, and how long it took.

An interceptor, so that a handler that is added later is counted without knowing of it. It stands
outermost: what another one refuses is counted too. Methods that nobody serves are not told of:
their names are the caller's invention.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from aggregator_service.telemetry import CallEnded, Telemetry
from aggregator_service.transport.errors import Context

__all__ = ["MeasuredCalls"]

_DEADLINE_SECONDS = 0.1
"""the server's own timer began later: its client's may be heard so long before it"""

_CODES = {status.value[0]: status.name for status in grpc.StatusCode}


class MeasuredCalls(grpc.aio.ServerInterceptor):
    """Wraps the handler of each call.

    Args:
        telemetry: told once a call has ended.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._handlers: dict[str, tuple[Any, Any]] = {}
        """by method: the handler, and the same with a measurement around it"""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._handlers.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._measuring_handler(handler, method.rpartition("/")[2]))
            self._handlers[method] = known
        return known[1]

    def _measuring_handler(self, handler: Any, method: str) -> Any:
        kind = (
            f"{'stream' if handler.request_streaming else 'unary'}_"
            f"{'stream' if handler.response_streaming else 'unary'}"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            self._measured(getattr(handler, kind), method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _measured(self, behavior: Callable[..., Any], method: str) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behavior):

            @functools.wraps(behavior)
            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                with self._measuring(method, context):
                    async for message in behavior(request, context):
                        yield message

            return stream

        @functools.wraps(behavior)
        async def answer(request: Any, context: Context) -> Any:
            with self._measuring(method, context):
                return await behavior(request, context)

        return answer

    @contextmanager
    def _measuring(self, method: str, context: Context) -> Iterator[None]:
        began, code = time.monotonic(), grpc.StatusCode.UNKNOWN.name
        try:
            yield
            code = _code(context)
        except grpc.aio.AbortError:
            code = _code(context)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = _code_of_cancelled(context)
            raise
        finally:
            seconds = time.monotonic() - began
            self._telemetry.call_ended(CallEnded(method=method, code=code, seconds=seconds))


def _code_of_cancelled(context: Context) -> str:
    """A handler is cancelled for a call's deadline as it is for a client that has gone."""
    remaining = context.time_remaining()
    expired = remaining is not None and remaining < _DEADLINE_SECONDS
    return (grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED).name


def _code(context: Context) -> str:
    """The name of the status that was set; a handler that sets none has succeeded."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODES[code or 0]
