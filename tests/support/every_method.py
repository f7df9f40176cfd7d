"""Every method that is served, found in the generated code, and calls of each by whoever it is."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from support.federation import hides_the_answer
from support.runs import LAYOUT

from aggregator_service.transport.access_table import ANYONE, ROLES
from fedlora.proto import v1
from fedlora.proto.v1 import adapter_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.services import ENROLMENT_SERVICE, REFLECTION_SERVICE
from fedlora.wire.convert import to_message

__all__ = [
    "GUARDED",
    "HEALTH",
    "METHODS",
    "ON_THE_MAIN_PORT",
    "REFLECTION",
    "call",
    "check_says_not_authenticated",
    "refused",
    "request_of",
    "whole",
]

_FILES: tuple[FileDescriptor, ...] = (
    *(
        import_module(f"{v1.__name__}.{module.name}").DESCRIPTOR
        for module in pkgutil.iter_modules(v1.__path__)
        if module.name.endswith("_pb2")
    ),
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
"""by path"""
ON_THE_MAIN_PORT = [m for m in METHODS if ENROLMENT_SERVICE not in m]
GUARDED = [m for m in ON_THE_MAIN_PORT if ROLES[m] is not ANYONE]
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = f"/{REFLECTION_SERVICE}/ServerReflectionInfo"

Whole: TypeAlias = tuple[grpc.StatusCode, str | None, Any, Any]


async def call(
    channel: grpc.aio.Channel, path: str, request: Any = None, *, wait: float = 10.0
) -> Any:
    """Calls a method with one request, an empty one by default, and returns its first answer."""
    method = METHODS[path]
    if request is None:
        request = GetMessageClass(method.input_type)()
    kinds: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    rpc = kinds[method.client_streaming, method.server_streaming](
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    while True:
        answer = rpc(iter([request]) if method.client_streaming else request, timeout=wait)
        try:
            if not method.server_streaming:
                return await answer
            first = await anext(aiter(answer), None)
        except grpc.aio.AioRpcError as error:
            if not hides_the_answer(error):
                raise
        else:
            answer.cancel()
            return first


def request_of(path: str, *, token: str = "", name: str = "w-1") -> Any:
    """A request of the method, of whoever has the token and name."""
    request = GetMessageClass(METHODS[path].input_type)()
    if isinstance(request, pb.RegisterRequest):
        request.worker_name, request.instance_id = name, "instance-1"
        request.capabilities.role = pb.ROLE_PARTY
    elif isinstance(request, pb.PushUpdateRequest):
        request.header.session_token = token
        request.header.manifest.SetInParent()
    elif "session_token" in request.DESCRIPTOR.fields_by_name:
        request.session_token = token
    if isinstance(request, pb.ConfirmAdapterRequest):
        request.layout.CopyFrom(to_message(LAYOUT, adapter_pb2.AdapterLayout))
    if isinstance(request, pb.ReportMetricsRequest):
        request.progress.SetInParent()
    return request


async def refused(
    channel: grpc.aio.Channel, path: str, request: Any = None
) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    while True:
        try:
            await call(channel, path, request_of(path) if request is None else request)
        except grpc.aio.AioRpcError as error:
            # A write on a stream that has ended hides its answer now and then.
            if error.code() is not grpc.StatusCode.INTERNAL:
                return error
        else:
            raise AssertionError(f"{path} was answered")


def whole(error: grpc.aio.AioRpcError) -> Whole:
    """All that a refusal tells: code, text, and the metadata before and after."""
    before, after = error.initial_metadata() or (), error.trailing_metadata() or ()
    return error.code(), error.details(), tuple(before), tuple(after)


def check_says_not_authenticated(errors: Collection[grpc.aio.AioRpcError]) -> None:
    """Checks that all are told one and the same, byte for byte, and that it does not say why."""
    ((code, text, before, after),) = {whole(error) for error in errors}
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert text == (
        "not authenticated. Ask the federation's operator; the server's log has the details"
    )
    assert before == ()
    assert [key for key, _ in after] == ["grpc-status-details-bin"]
    status = rpc_status.from_call(next(iter(errors)))
    assert status is not None
    assert (status.code, status.message) == (code.value[0], text)
    (detail,) = status.details
    told = error_details_pb2.ErrorInfo()
    assert detail.Unpack(told)
    assert told == error_details_pb2.ErrorInfo(
        reason="UNAUTHENTICATED",
        domain="fedlora",
        metadata={
            "message": "not authenticated",
            "hint": "Ask the federation's operator; the server's log has the details",
        },
    )
