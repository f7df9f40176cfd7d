"""What `fedlora workers` shows on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from fedlora.devices import Device, Reading
from fedlora_cli.device_table import WorkerRow, workers_table

GPU = Device(number="1:0", uuid="MIG-a", name="NVIDIA H MIG 1g")
READING = Reading(
    memory_used_bytes=3 << 29, memory_total_bytes=4 << 30, utilisation_percent=7,
    temperature_celsius=None,
)  # fmt: skip


def shown(*rows: WorkerRow) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200)
    console.print(workers_table(rows))
    return [line.split("  ") for line in console.file.getvalue().splitlines()]


def cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line if cell.strip()]


def test_a_worker_is_shown_with_its_device_and_how_that_does():
    row = WorkerRow(name="w", device=GPU, state="runs as 17", num_restarts=2, reading=READING)
    head, line = shown(row)
    assert cells(head) == ["worker", "device", "state", "restarts", "memory (GiB)", "GPU (%)", "°C"]
    assert cells(line) == ["w", "1:0 NVIDIA H MIG 1g", "runs as 17", "2", "1.5 / 4.0", "7", "–"]


def test_what_is_not_known_is_a_dash():
    silent = WorkerRow(name="a", device=GPU, state="s", num_restarts=0, reading=None)
    cpu = WorkerRow(name="b", device=None, state="s", num_restarts=0, reading=None)
    _, first, second = shown(silent, cpu)
    assert cells(first)[-3:] == cells(second)[-3:] == ["–", "–", "–"]
    assert cells(second)[1] == "cpu"
