"""Metrics of what the server is told as it happens: calls, uploads, bytes, commits.

The only ones on the hot path. The labels of each are fixed when it is made, and what a call has to
look up is a dictionary's entry.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from aggregator_service.telemetry import CallEnded, UploadEnded, UploadResult

__all__ = ["CallMetrics"]

_CALL_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)
"""a heartbeat takes less than the first, a poll for a task up to a minute"""

_OPEN_ENDED = frozenset({"KeepAlive", "WatchRun", "Watch"})
"""methods whose calls last as long as their callers like"""

_OUR_FAULT = ("INTERNAL", "UNKNOWN")
"""codes that the alert FedloraInternalErrors asks for"""

_COMMIT_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""an fsync of a good disk takes a few milliseconds"""

_MIB = 1024.0**2
_BYTES_PER_SECOND = tuple(_MIB * 4.0**i for i in range(-3, 6))
"""16 KiB/s, below which uploads are given up by default, to 1 GiB/s"""

_COUNTED = frozenset({UploadResult.COMMITTED, UploadResult.CUT})
"""results of streams whose bytes came over the network at their own rate"""


class CallMetrics:
    """A Telemetry (see `aggregator_service.telemetry`) that counts.

    Args:
        registry: where the metrics are shown.
        methods: that are served, without their services.
    """

    def __init__(self, registry: CollectorRegistry, methods: Iterable[str] = ()) -> None:
        self._calls = Counter(
            "fedlora_rpcs",
            "Calls that have ended.",
            ("method", "code"),
            registry=registry,
        )
        # What first appears as a 1 has not increased for Prometheus: the alert would miss it.
        for method, code in itertools.product(methods, _OUR_FAULT):
            self._calls.labels(method, code)
        self._call_seconds = Histogram(
            "fedlora_rpc_duration_seconds",
            "From the arrival of a call to its last message; AwaitTask waits for a task. Not of "
            "KeepAlive, WatchRun and Watch, which last as long as their callers like.",
            ("method",),
            registry=registry,
            buckets=_CALL_SECONDS,
        )
        uploads = Counter(
            "fedlora_uploads",
            "Streams of uploads that have ended.",
            ("result",),
            registry=registry,
        )
        self._uploads = {result: uploads.labels(result.value) for result in UploadResult}
        self._rates = Histogram(
            "fedlora_upload_rate_bytes_per_second",
            "Payload bytes of an upload's stream over the time since it had its place.",
            registry=registry,
            buckets=_BYTES_PER_SECOND,
        )
        moved = Counter(
            "fedlora_payload_bytes",
            "Bytes of updates that came in, and of adapters that went out.",
            ("direction",),
            registry=registry,
        )
        self._received, self._sent = moved.labels("in"), moved.labels("out")
        self._commits = Histogram(
            "fedlora_commit_duration_seconds",
            "Until a step of a run was durable: waiting for the store, SQLite, fsync.",
            registry=registry,
            buckets=_COMMIT_SECONDS,
        )

    def call_ended(self, call: CallEnded) -> None:
        """See Telemetry."""
        self._calls.labels(call.method, call.code).inc()
        if call.method not in _OPEN_ENDED:
            self._call_seconds.labels(call.method).observe(call.seconds)

    def upload_ended(self, upload: UploadEnded) -> None:
        """See Telemetry."""
        self._uploads[upload.result].inc()
        if upload.result in _COUNTED and upload.num_bytes and upload.seconds > 0:
            self._rates.observe(upload.num_bytes / upload.seconds)

    def received(self, num_bytes: int) -> None:
        """See Telemetry."""
        self._received.inc(num_bytes)

    def sent(self, num_bytes: int) -> None:
        """See Telemetry."""
        self._sent.inc(num_bytes)

    def committed(self, seconds: float) -> None:
        """See Telemetry."""
        self._commits.observe(seconds)
