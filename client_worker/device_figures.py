"""How the worker's own CUDA device does, read from NVML at each scrape of its metrics."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.devices import Devices, Reading
from fedlora.errors import FedLoraError

__all__ = ["own_readings"]


def own_readings(devices: Devices, uuid: str) -> Mapping[str, Reading]:
    """The one device that this process was given, by its UUID.

    Nothing while it does not answer, which the log tells of.

    Args:
        devices: of this machine.
        uuid: of the worker's; empty for the CPU.
    """
    try:
        return {uuid: devices.read(uuid)} if uuid else {}
    except FedLoraError:
        return {}
