"""Every error fedlora raises on purpose, each with a stable reason.

Two kinds never mix. A `FedLoraError` is the fault of a caller, a file, a peer or
the surroundings: its text names the thing, what was expected, what came and the
way out, and its `Reason` travels over the wire unchanged (`fedlora.rpc.status`
maps it to a gRPC status). Anything else that escapes is our own mistake and
reaches a peer only as INTERNAL without detail.
"""

from __future__ import annotations

import enum

__all__ = ["FedLoraError", "Reason", "invalid_argument"]


class Reason(enum.StrEnum):
    """Machine-readable reason of an error. Values are part of the protocol: add, never rename."""

    # the caller's input
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    """a field is missing or out of range"""
    INVALID_CONFIG = "INVALID_CONFIG"
    """a configuration file, variable or flag"""
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    """bytes that are not the safetensors file the manifest declares"""
    MANIFEST_MISMATCH = "MANIFEST_MISMATCH"
    """a manifest that is not the run's"""
    NOT_FINITE = "NOT_FINITE"
    """NaN or infinity in a tensor"""
    OFFSET_MISMATCH = "OFFSET_MISMATCH"
    """a gap, overlap or repeat in a stream of chunks"""
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    """bytes arrived that are not the ones sent"""
    UPLOAD_INCOMPLETE = "UPLOAD_INCOMPLETE"
    """a stream ended before its commit; it can be resumed"""
    UPLOAD_STALLED = "UPLOAD_STALLED"
    """a stream was silent for too long; it can be resumed"""
    UPLOAD_TOO_SLOW = "UPLOAD_TOO_SLOW"
    """a stream was slower than the least rate, or took too long; it can be resumed"""
    TOO_LARGE = "TOO_LARGE"
    """above a stated limit"""
    UNSUPPORTED_METHOD = "UNSUPPORTED_METHOD"
    """no such aggregation method, or one that cannot do what is asked"""
    INVALID_DATA = "INVALID_DATA"
    """a data file or its columns"""
    INVALID_MODEL = "INVALID_MODEL"
    """a base model that cannot be loaded or adapted as the run asks"""

    # the moment or the state
    NOT_FOUND = "NOT_FOUND"
    """no such run, round, version or task"""
    ALREADY_EXISTS = "ALREADY_EXISTS"
    """the name or key is taken by something else"""
    WRONG_ROUND = "WRONG_ROUND"
    """an update for a round that is closed or not yet open"""
    WRONG_TASK = "WRONG_TASK"
    """a task that is not this worker's"""
    WRONG_PHASE = "WRONG_PHASE"
    """the run is not in a phase in which this can be done"""
    BASE_MISMATCH = "BASE_MISMATCH"
    """a worker's base model is not the run's"""
    LAYOUT_MISMATCH = "LAYOUT_MISMATCH"
    """the adapter attaches to other modules than the run's"""
    NO_OPEN_RUN = "NO_OPEN_RUN"
    """no run to join, or more than one and none named"""
    NO_FREE_SLOT = "NO_FREE_SLOT"
    """all partitions of an experiment's data are leased"""
    STATE_LOCKED = "STATE_LOCKED"
    """another server owns the state directory"""
    STATE_CORRUPT = "STATE_CORRUPT"
    """stored bytes that no longer have their digest"""

    # identity
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """no identity that the server knows"""
    PERMISSION_DENIED = "PERMISSION_DENIED"
    """a known identity that may not do this"""
    UNKNOWN_SESSION = "UNKNOWN_SESSION"
    """no such session; register again"""
    SESSION_FENCED = "SESSION_FENCED"
    """a newer process has taken this worker's name"""

    # the surroundings
    UNAVAILABLE = "UNAVAILABLE"
    """the peer is away or shutting down; try again"""
    SERVER_BUSY = "SERVER_BUSY"
    """as much is under way as the server takes at a time; try again when it says"""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """the peer did not answer in time; try again"""
    OUT_OF_SPACE = "OUT_OF_SPACE"
    """no room to store what came"""
    DISK_FAILED = "DISK_FAILED"
    """the disk of the state directory does not read or write; try again"""
    DEVICE_UNAVAILABLE = "DEVICE_UNAVAILABLE"
    """the device asked for is not there, or not alone"""
    DEVICE_OUT_OF_MEMORY = "DEVICE_OUT_OF_MEMORY"
    """the work does not fit the memory of the device"""
    MISSING_EXTRA = "MISSING_EXTRA"
    """an optional package is not installed"""
    INTERNAL = "INTERNAL"
    """a mistake of ours"""


class FedLoraError(Exception):
    """An error somebody can do something about.

    Args:
        reason: stable machine-readable reason.
        message: one sentence naming the thing, what was expected and what was got.
        hint: the way out, in one sentence; empty where the message says it.
        retry_seconds: how long to wait before trying again; 0 where that is for the caller to say.
    """

    def __init__(
        self, reason: Reason, message: str, *, hint: str = "", retry_seconds: float = 0.0
    ) -> None:
        super().__init__(message if not hint else f"{message}. {hint}")
        self.reason = reason
        self.message = message
        self.hint = hint
        self.retry_seconds = retry_seconds

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.reason, self.message, self.hint, self.retry_seconds))


def _rebuild(reason: Reason, message: str, hint: str, retry_seconds: float) -> FedLoraError:
    return FedLoraError(reason, message, hint=hint, retry_seconds=retry_seconds)


def invalid_argument(message: str, hint: str = "") -> FedLoraError:
    """The error of a value that cannot be meant."""
    return FedLoraError(Reason.INVALID_ARGUMENT, message, hint=hint)
