"""What the server tells whoever counts: calls, payloads and commits, each with its details.

The server knows this protocol and nothing of what is made of it; `aggregator_service.metrics` makes
Prometheus metrics. What a run comes to is told by `observers.Observer`, and what can be looked at
whenever somebody asks (queues, phases, workers) is not told at all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "CallEnded",
    "Silent",
    "Telemetry",
    "UploadEnded",
    "UploadResult",
]


class UploadResult(enum.StrEnum):
    """How one stream of an upload ended."""

    COMMITTED = "committed"
    """it is an update now"""
    REPLAYED = "replayed"
    """it was one already, and is acknowledged again"""
    BUSY = "busy"
    """there was no place for it yet"""
    CUT = "cut"
    """it ended early, or too slowly, and can be resumed"""
    REFUSED = "refused"
    """it is not what was asked for, or not what was sent"""
    DISK = "disk"
    """the state directory did not take it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """One RPC, from its arrival to its last message."""

    method: str
    """without its service, "PushUpdate" """
    code: str
    """gRPC's name of it, "OK" """
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadEnded:
    """One stream of an upload, from its header on."""

    result: UploadResult
    num_bytes: int
    """that came in this stream, of the payload"""
    seconds: float
    """since it had its place"""


class Telemetry(Protocol):
    """Told on the event loop as it happens; must neither block nor raise."""

    def call_ended(self, call: CallEnded) -> None:
        """An RPC has ended, in whatever way."""
        ...

    def upload_ended(self, upload: UploadEnded) -> None:
        """A stream that brought an update's header has ended."""
        ...

    def received(self, num_bytes: int) -> None:
        """Bytes of an update have come."""
        ...

    def sent(self, num_bytes: int) -> None:
        """Bytes of an adapter were handed to the network."""
        ...

    def committed(self, seconds: float) -> None:
        """A step of a run is durable; so long it waited for the store's thread and the disk."""
        ...


class Silent:
    """Counts nothing."""

    def call_ended(self, call: CallEnded) -> None:
        """See Telemetry."""

    def upload_ended(self, upload: UploadEnded) -> None:
        """See Telemetry."""

    def received(self, num_bytes: int) -> None:
        """See Telemetry."""

    def sent(self, num_bytes: int) -> None:
        """See Telemetry."""

    def committed(self, seconds: float) -> None:
        """See Telemetry."""
