"""The figures of the worker's own CUDA device for its metrics, read from NVML at each scrape."""

from __future__ import annotations

from collections.abc import Sequence

from fedlora.devices import Devices
from fedlora.errors import FedLoraError
from fedlora.telemetry.devices import DeviceFigures

__all__ = ["OwnDevice"]


class OwnDevice:
    """A DeviceSource of the one device that this process was given.

    Args:
        devices: of this machine.
        uuid: of the worker's; empty for the CPU, which has no figures.
    """

    def __init__(self, devices: Devices, uuid: str) -> None:
        self._devices = devices
        self._uuid = uuid

    def read(self) -> Sequence[DeviceFigures]:
        """See DeviceSource; nothing while the device does not answer, which the log tells of."""
        if not self._uuid:
            return ()
        try:
            now = self._devices.read(self._uuid)
        except FedLoraError:
            return ()
        percent, celsius = now.utilisation_percent, now.temperature_celsius
        return (
            DeviceFigures(
                uuid=self._uuid,
                memory_used_bytes=now.memory_used_bytes,
                memory_total_bytes=now.memory_total_bytes,
                utilization_ratio=None if percent is None else percent / 100,
                temperature_celsius=None if celsius is None else float(celsius),
            ),
        )
