"""Metrics that both services have: version, memory and CPU, devices, the end of the identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from fedlora._version import __version__
from fedlora.devices import Reading

__all__ = ["DeviceReadings", "Expiry", "never", "process_registry"]

DeviceReadings = Callable[[], Mapping[str, Reading]]
"""how the GPUs of this process do, by UUID; asked from any thread, at each scrape"""

Expiry = Callable[[], float | None]
"""when the process's identity ends, in seconds since the epoch; None without an identity"""


def never() -> float | None:
    """The Expiry of a process without an identity."""
    return None


def process_registry(
    service: str, *, devices: DeviceReadings = dict, expires: Expiry = never
) -> CollectorRegistry:
    """A new registry with what every process shows.

    Args:
        service: "aggregator" or "worker".
        devices: the GPUs it computes on.
        expires: read at each scrape, so that a rotated certificate shows without a restart.
    """
    # When each counter was made is nearly a series more for every one, which nobody reads. The
    # library has one switch for a process.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Process(service, devices, expires))
    return registry


class _Process(Collector):
    def __init__(self, service: str, devices: DeviceReadings, expires: Expiry) -> None:
        self._service = service
        self._devices = devices
        self._expires = expires

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        yield InfoMetricFamily(
            "fedlora_build",
            "Version of this process.",
            {"version": __version__, "service": self._service},
        )
        ends = self._expires()
        yield GaugeMetricFamily(
            "fedlora_identity_expires_timestamp_seconds",
            "When the certificate of this process ends, in seconds since the epoch.",
            value=ends,
        )
        yield from self._device_metrics()

    def _device_metrics(self) -> Iterator[Metric]:
        used = _by_device("memory_used_bytes", "Memory of a GPU that is taken, by all processes.")
        total = _by_device("memory_total_bytes", "Memory of a GPU.")
        busy = _by_device("utilization_ratio", "Share of the last moment in which a GPU computed.")
        warmth = _by_device("temperature_celsius", "Temperature of a GPU.")
        for uuid, now in self._devices().items():
            used.add_metric([uuid], now.memory_used_bytes)
            total.add_metric([uuid], now.memory_total_bytes)
            if now.utilisation_percent is not None:
                busy.add_metric([uuid], now.utilisation_percent / 100)
            if now.temperature_celsius is not None:
                warmth.add_metric([uuid], now.temperature_celsius)
        yield from (used, total, busy, warmth)


def _by_device(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fedlora_device_{name}", text, labels=["device"])
