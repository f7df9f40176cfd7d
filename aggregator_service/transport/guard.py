"""Lets nobody call what is not his to call: before a handler runs, and while it streams.

Whom the server does not know learns that he is not authenticated, and nothing else; a member who
may not do what he asks for learns that. Everything else is in the log.

A call that never sends its message would hold a place for ever: for that there is a limit. Calls
that anyone may make, and those of nobody until they are refused, have few places at a time, so that
some are left for members.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
        message_seconds: longest wait for the one message of a call.
        most_strangers: calls at a time that anyone may make.
    """

    def __init__(
        self, callers: Callers | None, *, message_seconds: float, most_strangers: int
    ) -> None:
        self._callers = callers
        self._message_seconds = message_seconds
        self._strangers = _Strangers(most_strangers)
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
        """A handler with the same answers that first finds out who calls."""
        if method not in ROLES:
            raise AssertionError(f"{method} is served, and access_table does not say to whom")
        seconds = 0.0 if handler.request_streaming else self._message_seconds
        gate = _Gate(method, ROLES[method], callers, self._strangers, seconds)
        behaviour, make = _parts(handler)

        async def requested(messages: Any, caller: Caller | None, context: Context) -> Any:
            if handler.request_streaming:
                return gate.while_admitted(messages, caller, context)
            return await gate.message(caller, context)

        async def answer(messages: Any, context: Context) -> Any:
            caller = await gate.admit(context)
            with gate.place(caller):
                request = await requested(messages, caller, context)
                with calling(caller):
                    return await behaviour(request, context)

        async def stream(messages: Any, context: Context) -> AsyncIterator[Any]:
            caller = await gate.admit(context)
            with gate.place(caller):
                request = await requested(messages, caller, context)
                with calling(caller):
                    async for message in gate.while_admitted(
                        behaviour(request, context), caller, context
                    ):
                        yield message

        # One that writes its messages itself, as gRPC's Health.Watch does, cannot be cut off.
        yields = inspect.isasyncgenfunction(behaviour)
        if handler.response_streaming and not yields and ROLES[method] is not ANYONE:
            raise AssertionError(f"{method} writes messages, and its caller may be revoked")
        return make(
            stream if yields else answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Strangers:
    """Calls under way that anyone may make.

    Args:
        most: of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.num = 0


class _Gate:
    """The check before one method."""

    def __init__(
        self,
        method: str,
        access: Access,
        callers: Callers,
        strangers: _Strangers,
        message_seconds: float,
    ) -> None:
        self._method = method
        self._message_seconds = message_seconds
        self._access = access
        self._callers = callers
        self._strangers = strangers

    async def admit(self, context: Context) -> Caller | None:
        """The caller, if he may call the method; otherwise the call ends here."""
        access = self._access
        if access is ANYONE:
            strangers = self._strangers
            if strangers.num >= strangers.most:
                error = FedLoraError(
                    Reason.SERVER_BUSY, f"{strangers.most} such calls are taken at a time"
                )
                await self._refuse(context, error, why="too many of such calls")
            return None
        metadata: Mapping[str, str | bytes] = dict(context.invocation_metadata() or ())
        caller = self._callers.identify(context.auth_context(), metadata)
        if isinstance(caller, str):
            await self._hear_out(context)
            await self._refuse(context, not_authenticated(), why=caller)
        if caller.role not in access:
            error = FedLoraError(
                Reason.PERMISSION_DENIED,
                f"the role {caller.role.value} may not call {self._method.rsplit('/', 1)[1]}",
            )
            await self._hear_out(context)
            await self._refuse(context, error, why=f"{caller.role.value} {caller.name}")
        return caller

    @contextmanager
    def place(self, caller: Caller | None) -> Iterator[None]:
        """Within, the call counts, if nobody knows whose it is."""
        num = int(caller is None)
        self._strangers.num += num
        try:
            yield
        finally:
            self._strangers.num -= num

    async def _hear_out(self, context: Context) -> None:
        """Takes the message of one who is refused: a client that sends still may not hear why."""
        if self._message_seconds and self._strangers.num < self._strangers.most:
            # One that cannot be read is refused as any other.
            with self.place(None), suppress(Exception):
                async with asyncio.timeout(self._message_seconds):
                    await context.read()

    async def message(self, caller: Caller | None, context: Context) -> Any:
        """The message of a call that has one."""
        seconds = self._message_seconds
        try:
            async with asyncio.timeout(seconds):
                message = await context.read()
        except TimeoutError:
            text = f"a message was expected within {seconds:g} s, got none"
            await abort(context, FedLoraError(Reason.DEADLINE_EXCEEDED, text))
        if message is grpc.aio.EOF:
            await abort(context, FedLoraError(Reason.INVALID_ARGUMENT, "the call has no message"))
        await self._check(caller, context)
        return message

    async def while_admitted(
        self, messages: AsyncIterator[M], caller: Caller | None, context: Context
    ) -> AsyncIterator[M]:
        """The messages, until the caller is nobody any longer."""
        async for message in messages:
            await self._check(caller, context)
            yield message

    async def _check(self, caller: Caller | None, context: Context) -> None:
        """Ends the call of one who is nobody any longer."""
        if caller is not None and (why := self._callers.refusal(caller)):
            await self._refuse(context, not_authenticated(), why=why)

    async def _refuse(self, context: Context, error: FedLoraError, *, why: str) -> NoReturn:
        log.warning("call_refused", method=self._method, peer=context.peer(), why=why)
        await abort(context, error)


def _parts(handler: Handler) -> tuple[Callable[..., Any], Callable[..., Handler]]:
    """What a handler runs, and what makes one of its answers that takes its messages one by one."""
    kind = f"{_kind(handler.request_streaming)}_{_kind(handler.response_streaming)}"
    make = getattr(grpc, f"stream_{_kind(handler.response_streaming)}_rpc_method_handler")
    return getattr(handler, kind), make


def _kind(streaming: bool) -> str:
    return "stream" if streaming else "unary"
