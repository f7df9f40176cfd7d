"""Lets nobody call what is not his to call: before a handler runs, and while it streams.

Whom the server does not know learns that he is not authenticated, and nothing else; a member who
may not do what he asks for learns that. Everything else is in the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog

from aggregator_service.caller import Caller, calling
from aggregator_service.enrolment import not_authenticated
from aggregator_service.transport.access_table import ANYONE, ROLES, Access
from aggregator_service.transport.callers import Callers
from aggregator_service.transport.errors import Context, abort
from fedlora.errors import FedLoraError, Reason

__all__ = ["Guard"]

log = structlog.get_logger(__name__)

M = TypeVar("M")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Find: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


class Guard(grpc.aio.ServerInterceptor):
    """Stands before every handler of a server.

    Args:
        callers: tells who calls; None where nobody needs to say so.
    """

    def __init__(self, callers: Callers | None) -> None:
        self._callers = callers
        self._guarded: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self, continuation: Find, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The handler of a call, with a check before it."""
        handler = await continuation(handler_call_details)
        if handler is None or self._callers is None:
            return handler
        method = handler_call_details.method
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._guard(handler, method, self._callers))
            self._guarded[method] = known
        return known[1]

    def _guard(self, handler: Handler, method: str, callers: Callers) -> Handler:
        """A handler of the same kind that first finds out who calls."""
        if method not in ROLES:
            raise AssertionError(f"{method} is served, and access_table does not say to whom")
        gate = _Gate(method, ROLES[method], callers)
        behaviour, make = _parts(handler)

        async def answer(request: Any, context: Context) -> Any:
            caller = await gate.admit(context)
            if handler.request_streaming:
                request = gate.while_admitted(request, caller, context)
            with calling(caller):
                return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            caller = await gate.admit(context)
            if handler.request_streaming:
                request = gate.while_admitted(request, caller, context)
            with calling(caller):
                async for message in gate.while_admitted(
                    behaviour(request, context), caller, context
                ):
                    yield message

        return make(
            stream if handler.response_streaming else answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Gate:
    """The check before one method."""

    def __init__(self, method: str, access: Access, callers: Callers) -> None:
        self._method = method
        self._access = access
        self._callers = callers

    async def admit(self, context: Context) -> Caller | None:
        """The caller, if he may call the method; otherwise the call ends here."""
        access = self._access
        if access is ANYONE:
            return None
        metadata: Mapping[str, str | bytes] = dict(context.invocation_metadata() or ())
        caller = self._callers.identify(context.auth_context(), metadata)
        if isinstance(caller, str):
            await self._refuse(context, not_authenticated(), why=caller)
        if caller.role not in access:
            error = FedLoraError(
                Reason.PERMISSION_DENIED,
                f"the role {caller.role.value} may not call {self._method.rsplit('/', 1)[1]}",
            )
            await self._refuse(context, error, why=f"{caller.role.value} {caller.name}")
        return caller

    async def while_admitted(
        self, messages: AsyncIterator[M], caller: Caller | None, context: Context
    ) -> AsyncIterator[M]:
        """The messages, until the caller is nobody any longer."""
        async for message in messages:
            if caller is not None and (why := self._callers.refusal(caller)):
                await self._refuse(context, not_authenticated(), why=why)
            yield message

    async def _refuse(self, context: Context, error: FedLoraError, *, why: str) -> NoReturn:
        log.warning("call_refused", method=self._method, peer=context.peer(), why=why)
        await abort(context, error)


def _parts(handler: Handler) -> tuple[Callable[..., Any], Callable[..., Handler]]:
    """What a handler runs, and what makes a handler of its kind."""
    kinds: Mapping[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    return kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
