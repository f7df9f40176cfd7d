"""Round time against the number of workers and the size of the adapter, with the line that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transports.adapters import SMALL, Adapter
from transports.federation import rounds_of
from transports.workers import Workers

from aggregator_service.reporting.scale import format_number
from fedlora_cli.study.plots import Line, Panel, draw

__all__ = ["curves"]

_WORKERS = 8
"""of the points whose adapters vary; the others' adapters are SMALL"""


@dataclass(frozen=True, slots=True)
class _Point:
    count: int
    megabytes: float
    """of one adapter"""
    seconds: float
    """a round"""
    server_cpu: float
    """seconds per GB that went up or down"""
    worker_cpu: float


def curves(
    folder: Path,
    pool: Workers,
    *,
    counts: Sequence[int],
    layers: Sequence[int],
    rounds: int,
    plot: Path,
) -> list[str]:
    """The section of the page, and its plot.

    Args:
        folder: on the disk to be measured.
        pool: processes of the workers.
        counts: of workers, ascending.
        layers: of the adapter, ascending.
        rounds: that are measured at each point.
        plot: SVG file to be written.
    """
    by_count = [_point(folder, pool, SMALL, n, rounds) for n in counts]
    by_size = [_point(folder, pool, Adapter(n, SMALL.rank), _WORKERS, rounds) for n in layers]
    lines = [
        "## Round time",
        "",
        (
            "A round as above. The fit is least squares of all points, seconds over the bytes "
            "that all workers together send up; as many come down. CPU in seconds per GB of both "
            "directions, aggregation included. Workers beyond "
            f"{pool.num_processes} share {pool.num_processes} processes."
        ),
        "",
        "| workers | MB a worker | ms a round | fit | server CPU | worker CPU |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    points = [*by_count, *by_size]
    up = np.array([p.count * p.megabytes for p in points])
    seconds = np.array([p.seconds for p in points])
    slope, constant = np.polyfit(up, seconds, 1)
    left = float(np.sum((seconds - constant - slope * up) ** 2))
    explained = 1 - left / float(np.sum((seconds - seconds.mean()) ** 2))
    for p in points:
        fitted = constant + slope * p.count * p.megabytes
        lines.append(
            f"| {p.count} | {p.megabytes:.3g} | {format_number(1e3 * p.seconds)} | "
            f"{format_number(1e3 * fitted)} | "
            f"{p.server_cpu:.2f} | {p.worker_cpu:.2f} |"
        )
    lines += [
        "",
        (
            f"A round takes {1e3 * constant:.3g} ms and {1e3 * slope:.3g} ms for each MB sent up "
            f"(R² = {explained:.3f})."
        ),
        "",
        f"![round time]({plot.name})",
        "",
    ]
    plot.write_text(_drawn(by_count, by_size, slope, constant), encoding="utf-8")
    print("\n".join(lines), flush=True)
    return lines


def _point(folder: Path, pool: Workers, adapter: Adapter, count: int, rounds: int) -> _Point:
    found = rounds_of(folder / "point", pool, adapter, count=count, rounds=rounds)
    gigabytes = 2 * count * adapter.num_bytes / 1e9
    return _Point(
        count=count,
        megabytes=adapter.num_bytes / 1e6,
        seconds=found.median,
        server_cpu=found.server_cpu_seconds / gigabytes,
        worker_cpu=found.worker_cpu_seconds / gigabytes,
    )


def _drawn(
    by_count: Sequence[_Point], by_size: Sequence[_Point], slope: float, constant: float
) -> str:
    counts, sizes = [float(p.count) for p in by_count], [p.megabytes for p in by_size]
    return draw(
        [
            Panel(
                title=f"workers, {by_count[0].megabytes:.2g} MB each",
                unit="s a round",
                lines=[
                    Line("measured", counts, [p.seconds for p in by_count]),
                    Line(
                        "fit",
                        counts,
                        [constant + slope * n * by_count[0].megabytes for n in counts],
                        marks=False,
                    ),
                ],
            ),
            Panel(
                title=f"MB a worker, {_WORKERS} workers",
                unit="s a round",
                lines=[
                    Line("measured", sizes, [p.seconds for p in by_size]),
                    Line(
                        "fit", sizes, [constant + slope * _WORKERS * s for s in sizes], marks=False
                    ),
                ],
            ),
            Panel(
                title=f"MB a worker, {_WORKERS} workers",
                unit="CPU s/GB",
                lines=[
                    Line("server", sizes, [p.server_cpu for p in by_size]),
                    Line("workers", sizes, [p.worker_cpu for p in by_size]),
                ],
            ),
        ]
    )
