"""Many workers that fetch one version at the same time: what it takes, and what they wait for."""

from __future__ import annotations

from pathlib import Path

from shared.processes import watched
from transports.adapters import Adapter, run_of
from transports.federation import federation
from transports.workers import Workers

__all__ = ["fetches"]


def fetches(folder: Path, pool: Workers, adapter: Adapter, *, count: int) -> list[str]:
    """The section of the page."""
    spec = run_of(adapter, workers=count, rounds=1)
    with federation(folder / "fetches", pool, adapter, spec, count) as served:
        pool.all("ready")
        with watched(lambda: [served.pid]) as process:
            notes = pool.all("pull").of
        pool.all("end")
    began = min(n["pull_began"] for n in notes)
    seconds = max(n["pull_ended"] for n in notes) - began
    waits = sorted(n["pull_ended"] - n["pull_began"] for n in notes)
    rows = {
        "from the first one's start to the last one's, s": (
            f"{max(n['pull_began'] for n in notes) - began:.2f}"
        ),
        "from the first one's start until all have it, s": f"{seconds:.2f}",
        "one download, s, median and 99th percentile": (
            f"{waits[len(waits) // 2]:.2f} / {waits[int(0.99 * len(waits))]:.2f}"
        ),
        "GB/s": f"{sum(n['bytes_down'] for n in notes) / seconds / 1e9:.2f}",
        "server CPU, ms a download": f"{1e3 * process.cpu_seconds / count:.2g}",
        "server's private memory above idle, MB": f"{process.above_idle / 1e6:.0f}",
    }
    lines = [
        "## Many downloads",
        "",
        (
            f"{count:,} workers, each with a connection of its own, from {pool.num_processes} "
            f"processes, that fetch the same {adapter.num_bytes / 1e6:.2g} MB at once; each checks "
            "the digest, keeps the file and decodes it."
        ),
        "",
        "| | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
    print("\n".join(lines), flush=True)
    return lines
