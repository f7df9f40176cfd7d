"""How one stream of an upload ended, for those who count: its error, or its acknowledgement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from aggregator_service.disk_watch import DISK_REFUSES
from aggregator_service.pace import Pace
from aggregator_service.telemetry import Telemetry, UploadEnded, UploadResult
from fedlora.errors import FedLoraError, Reason

__all__ = ["CUT", "UploadStory"]

CUT = frozenset(
    {
        Reason.UPLOAD_INCOMPLETE,
        Reason.UPLOAD_STALLED,
        Reason.UPLOAD_TOO_SLOW,
        Reason.OFFSET_MISMATCH,
        Reason.UNAVAILABLE,
    }
)
"""reasons for which a stream ended and its upload may go on"""


class UploadStory:
    """Follows one stream and tells a Telemetry of its end.

    Args:
        telemetry: told.
        pace: counts the stream's bytes.
    """

    def __init__(self, telemetry: Telemetry, pace: Pace) -> None:
        self._telemetry = telemetry
        self._pace = pace
        self._began = time.monotonic()
        # A stream whose client or server goes away is cut: that is no FedLoraError.
        self._result = UploadResult.CUT

    def has_place(self) -> None:
        """Starts its clock: it has had its turn."""
        self._began = time.monotonic()

    def acknowledged(self, *, replayed: bool) -> None:
        """Notes the good end."""
        self._result = UploadResult.REPLAYED if replayed else UploadResult.COMMITTED

    @contextmanager
    def until_its_end(self) -> Iterator[None]:
        """Around all of the stream."""
        try:
            yield
        except FedLoraError as error:
            self._result = _result_of(error.reason)
            raise
        finally:
            self._telemetry.upload_ended(
                UploadEnded(
                    result=self._result,
                    num_bytes=self._pace.moved_bytes,
                    seconds=time.monotonic() - self._began,
                )
            )


def _result_of(reason: Reason) -> UploadResult:
    if reason is Reason.SERVER_BUSY:
        return UploadResult.BUSY
    if reason in CUT:
        return UploadResult.CUT
    return UploadResult.DISK if reason in DISK_REFUSES else UploadResult.REFUSED
