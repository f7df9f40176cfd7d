"""A refusal crosses the wire as it was raised, with the time after which to come back."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fedlora.errors import FedLoraError, Reason
from fedlora.rpc.status import from_rpc_error, to_status


@asynccontextmanager
async def refusing(error: FedLoraError) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable]:
    """A method of a real server that always fails so."""

    async def refuse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        status = to_status(error)
        await context.abort(status.code, status.details, status.trailing_metadata or ())

    server = grpc.aio.server()
    handlers = {"Refuse": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.unary_unary("/test/Refuse")
    finally:
        await server.stop(0)


async def caught_from(error: FedLoraError) -> grpc.aio.AioRpcError:
    async with refusing(error) as method:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"", timeout=10)
    return caught.value


@pytest.mark.parametrize("retry_seconds", [0.0, 2.5])
def test_a_refusal_arrives_with_reason_text_hint_and_when_to_come_back(retry_seconds: float):
    error = FedLoraError(
        Reason.SERVER_BUSY, "all is taken", hint="Wait", retry_seconds=retry_seconds
    )
    again = from_rpc_error(asyncio.run(caught_from(error)), peer="the server")
    told = (again.reason, again.message, again.hint, again.retry_seconds)
    assert told == (error.reason, error.message, error.hint, retry_seconds)


@pytest.mark.parametrize("letter", ["x", "字", "🦙"])
def test_a_refusal_with_more_to_say_than_grpc_lets_through_keeps_its_reason(letter: str):
    error = FedLoraError(Reason.NOT_FOUND, f"no run; there are: {letter * 5000}", hint=letter * 500)
    again = from_rpc_error(asyncio.run(caught_from(error)), peer="the server")
    assert again.reason is Reason.NOT_FOUND
    assert again.message.startswith(f"no run; there are: {letter * 200}")
    assert again.message.endswith("…")
    assert again.hint.startswith(letter * 50)


def test_the_time_to_come_back_is_googles_retry_info_which_other_clients_know():
    caught = asyncio.run(
        caught_from(FedLoraError(Reason.SERVER_BUSY, "all is taken", retry_seconds=2.5))
    )
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(caught).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_an_error_survives_a_way_between_processes():
    error = FedLoraError(Reason.SERVER_BUSY, "all is taken", hint="Wait", retry_seconds=2.5)
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
