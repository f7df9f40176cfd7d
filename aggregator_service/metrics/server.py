"""Metrics of the server that are looked up when somebody asks: queues and the disk."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aggregator_service.admission import Admission
from aggregator_service.disk_watch import DiskWatch

__all__ = ["ServerCollector"]


class ServerCollector(Collector):
    """Looks at a server.

    Args:
        admission: which uploads run and wait.
        disk: whether the state directory takes writes.
    """

    def __init__(self, admission: Admission, disk: DiskWatch) -> None:
        self._admission = admission
        self._disk = disk

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        yield GaugeMetricFamily(
            "fedlora_uploads_active",
            "Uploads that have a place and are being received.",
            value=self._admission.num_running,
        )
        yield GaugeMetricFamily(
            "fedlora_uploads_waiting",
            "Uploads that wait for a place.",
            value=self._admission.num_waiting,
        )
        yield GaugeMetricFamily(
            "fedlora_disk_takes_writes",
            "1 while the state directory takes writes, 0 from a write that failed.",
            value=float(self._disk.takes_writes),
        )
