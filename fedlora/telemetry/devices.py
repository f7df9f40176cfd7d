"""What a GPU is doing, as whoever shows it is told: figures by device, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["DeviceFigures", "DeviceSource", "NoDevices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """One GPU at one moment; None for what its source does not know."""

    uuid: str
    memory_used_bytes: int
    """by all processes"""
    memory_total_bytes: int
    utilization_ratio: float | None = None
    """share of the last moment in which it computed, in [0, 1]"""
    temperature_celsius: float | None = None


class DeviceSource(Protocol):
    """Reads the figures of this process's devices."""

    def read(self) -> Sequence[DeviceFigures]:
        """The figures now, none where there is no GPU; asked from any thread, at each scrape."""
        ...


class NoDevices:
    """The source of a process that computes on the CPU."""

    def read(self) -> Sequence[DeviceFigures]:
        """Nothing."""
        return ()
