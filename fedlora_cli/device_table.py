"""The table that `fedlora workers` shows on a terminal: each worker, and how its device does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fedlora.devices import Device, Reading

__all__ = ["WorkerRow", "workers_table"]

_GIB = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One worker at one moment."""

    name: str
    device: Device | None
    """None for the CPU"""
    state: str
    num_restarts: int
    """since its supervisor began"""
    reading: Reading | None
    """None where the device does not answer, and for the CPU"""


def workers_table(rows: Sequence[WorkerRow]) -> Table:
    """One line a worker; a dash for what is not known."""
    table = Table(box=None, pad_edge=False)
    table.add_column("worker")
    table.add_column("device")
    table.add_column("state")
    for figure in ("restarts", "memory (GiB)", "GPU (%)", "°C"):
        table.add_column(figure, justify="right")
    for row in rows:
        device = f"{row.device.number} {row.device.name}" if row.device else "cpu"
        table.add_row(row.name, device, row.state, str(row.num_restarts), *_figures(row.reading))
    return table


def _figures(reading: Reading | None) -> tuple[str, str, str]:
    if reading is None:
        return "–", "–", "–"
    used, total = reading.memory_used_bytes / _GIB, reading.memory_total_bytes / _GIB
    return (
        f"{used:.1f} / {total:.1f}",
        _or_dash(reading.utilisation_percent),
        _or_dash(reading.temperature_celsius),
    )


def _or_dash(figure: int | None) -> str:
    return "–" if figure is None else str(figure)
