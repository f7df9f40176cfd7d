"""All metrics of one server, and the page that shows them."""

from __future__ import annotations

from collections.abc import Iterable

from aggregator_service.admission import Admission
from aggregator_service.coordinator import Coordinator
from aggregator_service.disk_watch import DiskWatch
from aggregator_service.metrics.calls import CallMetrics
from aggregator_service.metrics.rounds import RoundTallies
from aggregator_service.metrics.runs import RunCollector
from aggregator_service.metrics.server import ServerCollector
from fedlora.telemetry.endpoint import MetricsEndpoint
from fedlora.telemetry.process_metrics import DeviceReadings, Expiry, never, process_registry

__all__ = ["ServerMetrics"]


class ServerMetrics:
    """One registry and those who fill it.

    Args:
        devices: where adapters are combined.
        expires: when the server's identity ends.
        methods: that are served, without their services.
    """

    def __init__(
        self, devices: DeviceReadings, expires: Expiry = never, *, methods: Iterable[str] = ()
    ) -> None:
        self._registry = process_registry("aggregator", devices=devices, expires=expires)
        self.calls = CallMetrics(self._registry, methods)
        """the Telemetry of the server"""
        self.rounds = RoundTallies()
        """an Observer of its runs"""

    def page(
        self, address: str, coordinator: Coordinator, admission: Admission, disk: DiskWatch
    ) -> MetricsEndpoint:
        """The page, of what was told and of what these are at each scrape.

        Args:
            address: host:port.
            coordinator: its runs.
            admission: which uploads run and wait.
            disk: whether the state directory takes writes.
        """
        self._registry.register(RunCollector(coordinator.runs, self.rounds))
        self._registry.register(ServerCollector(admission, disk))
        return MetricsEndpoint(address, self._registry, key="server.metrics_address")
