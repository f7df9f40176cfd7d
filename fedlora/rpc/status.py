"""One table from reasons to gRPC status codes, used in both directions.

The server turns a FedLoraError into a status with google.rpc.ErrorInfo (reason, domain,
hint) and, where it says when to come back, google.rpc.RetryInfo; the client turns that back into
the same FedLoraError. What has no reason is our own mistake: INTERNAL, no detail for the peer,
everything in the log.
"""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fedlora.errors import FedLoraError, Reason

__all__ = ["DOMAIN", "STATUS_OF_REASON", "from_rpc_error", "to_status"]

DOMAIN = "fedlora"

_C = grpc.StatusCode

_MOST_MESSAGE_BYTES = 960
"""of UTF-8. A text crosses the wire three times, once with three bytes for each that is not ASCII;
clients give up a call whose status has more than 8 KiB, and its reason with it (measured, grpc
1.85.1)"""
_MOST_HINT_BYTES = 320

STATUS_OF_REASON: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: _C.INVALID_ARGUMENT,
    Reason.INVALID_CONFIG: _C.INVALID_ARGUMENT,
    Reason.INVALID_PAYLOAD: _C.INVALID_ARGUMENT,
    Reason.MANIFEST_MISMATCH: _C.INVALID_ARGUMENT,
    Reason.NOT_FINITE: _C.INVALID_ARGUMENT,
    Reason.OFFSET_MISMATCH: _C.INVALID_ARGUMENT,
    Reason.DIGEST_MISMATCH: _C.DATA_LOSS,
    Reason.UPLOAD_INCOMPLETE: _C.ABORTED,
    Reason.UPLOAD_STALLED: _C.DEADLINE_EXCEEDED,
    Reason.UPLOAD_TOO_SLOW: _C.DEADLINE_EXCEEDED,
    Reason.TOO_LARGE: _C.INVALID_ARGUMENT,
    Reason.UNSUPPORTED_METHOD: _C.INVALID_ARGUMENT,
    Reason.INVALID_DATA: _C.INVALID_ARGUMENT,
    Reason.INVALID_MODEL: _C.INVALID_ARGUMENT,
    Reason.NOT_FOUND: _C.NOT_FOUND,
    Reason.ALREADY_EXISTS: _C.ALREADY_EXISTS,
    Reason.WRONG_ROUND: _C.FAILED_PRECONDITION,
    Reason.WRONG_TASK: _C.FAILED_PRECONDITION,
    Reason.WRONG_PHASE: _C.FAILED_PRECONDITION,
    Reason.BASE_MISMATCH: _C.FAILED_PRECONDITION,
    Reason.LAYOUT_MISMATCH: _C.FAILED_PRECONDITION,
    Reason.NO_OPEN_RUN: _C.FAILED_PRECONDITION,
    Reason.NO_FREE_SLOT: _C.RESOURCE_EXHAUSTED,
    Reason.STATE_LOCKED: _C.FAILED_PRECONDITION,
    Reason.STATE_CORRUPT: _C.DATA_LOSS,
    Reason.UNAUTHENTICATED: _C.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: _C.PERMISSION_DENIED,
    Reason.UNKNOWN_SESSION: _C.UNAUTHENTICATED,
    Reason.SESSION_FENCED: _C.ABORTED,
    Reason.UNAVAILABLE: _C.UNAVAILABLE,
    Reason.SERVER_BUSY: _C.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: _C.DEADLINE_EXCEEDED,
    Reason.OUT_OF_SPACE: _C.RESOURCE_EXHAUSTED,
    Reason.DISK_FAILED: _C.UNAVAILABLE,
    Reason.DEVICE_UNAVAILABLE: _C.FAILED_PRECONDITION,
    Reason.DEVICE_OUT_OF_MEMORY: _C.RESOURCE_EXHAUSTED,
    Reason.MISSING_EXTRA: _C.FAILED_PRECONDITION,
    Reason.INTERNAL: _C.INTERNAL,
}

# Statuses that gRPC itself makes, without our details.
_REASON_OF_BARE_STATUS = {
    _C.UNAVAILABLE: Reason.UNAVAILABLE,
    # A write on a stream whose peer is gone ends as INTERNAL as often as UNAVAILABLE (measured).
    _C.INTERNAL: Reason.UNAVAILABLE,
    _C.CANCELLED: Reason.UNAVAILABLE,
    _C.UNKNOWN: Reason.INTERNAL,
    _C.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    _C.RESOURCE_EXHAUSTED: Reason.UNAVAILABLE,
    _C.UNIMPLEMENTED: Reason.INVALID_ARGUMENT,
    _C.NOT_FOUND: Reason.NOT_FOUND,
    _C.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    _C.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    _C.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
}

# What gRPC says where one side is encrypted and the other is not, or a certificate is refused. With
# TLS 1.3 the client has finished by then, and sees only that the connection closes (measured).
_ENCRYPTION_SIGNS = ("Socket closed", "handshake")
_ENCRYPTION_HINT = (
    "If it is up, one of you talks plain text and the other does not, or you know different "
    "authorities: see docs/security.md, and FEDLORA_IDENTITY_DIR or worker.identity_dir"
)

# What gRPC says where the certificate is good, and names other hosts than the one that was dialled.
_NAME_SIGN = "Hostname Verification Check failed"
_NAME_HINT = (
    "The server's certificate does not name this host: dial one that `fedlora pki init` was given "
    "with --server-name (--server HOST:PORT, worker.server, or the invitation's --enrolment)"
)


def to_status(error: FedLoraError) -> grpc.Status:
    """The status that tells a peer about `error`, as much of its text as gRPC lets through."""
    told = FedLoraError(
        error.reason,
        _cut(error.message, _MOST_MESSAGE_BYTES),
        hint=_cut(error.hint, _MOST_HINT_BYTES),
    )
    info = error_details_pb2.ErrorInfo(reason=told.reason.value, domain=DOMAIN)
    info.metadata["message"] = told.message
    if told.hint:
        info.metadata["hint"] = told.hint
    status = status_pb2.Status(code=STATUS_OF_REASON[told.reason].value[0], message=str(told))
    status.details.add().Pack(info)
    if error.retry_seconds:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * error.retry_seconds))
        status.details.add().Pack(retry)
    converted: grpc.Status = rpc_status.to_status(status)
    return converted


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return text
    return encoded[:most_bytes].decode("utf-8", "ignore") + " …"


def from_rpc_error(error: grpc.RpcError, *, peer: str) -> FedLoraError:
    """The FedLoraError a peer raised, or the nearest to what went wrong on the way.

    Args:
        error: as raised by a stub, sync or asyncio.
        peer: address called, for the text.
    """
    status = rpc_status.from_call(error)
    if status is not None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(retry)
        if info.domain == DOMAIN and info.reason in set(Reason):
            return FedLoraError(
                Reason(info.reason),
                info.metadata.get("message", status.message),
                hint=info.metadata.get("hint", ""),
                retry_seconds=retry.retry_delay.ToMilliseconds() / 1000,
            )
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else _C.UNKNOWN
    reason = _REASON_OF_BARE_STATUS.get(code, Reason.INTERNAL)
    text = error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else str(error)
    said = f"{peer} answered {code.name}: {text or 'no detail'}"
    return FedLoraError(reason, said, hint=_hint_of(text or ""))


def _hint_of(text: str) -> str:
    if _NAME_SIGN in text:
        return _NAME_HINT
    return _ENCRYPTION_HINT if any(words in text for words in _ENCRYPTION_SIGNS) else ""
