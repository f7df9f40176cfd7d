"""What stalled and slow uploads cost the honest ones, and what uploads cost the control calls.

    python benchmarks/bounds.py [--quick] [--out PAGE]

A real server process with its default settings, real gRPC over the loopback interface; the senders
share the machine with it. Whatever is said of a load is beside the same figure without it, from the
same minute.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared.processes import commit, machine

# The senders are those of the tests that hold these bounds.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.control_calls import beside
from support.crowd import gathered, meet, p99

_RANK = 512
"""4 MiB an upload"""


async def crowd(folder: Path, *, stalled: int, slow: int, seconds: float) -> list[str]:
    """The section about many uploads at once."""
    lanes, uploads = 8, 15
    async with gathered(folder, stalled + slow + 2 * lanes * uploads, rank=_RANK) as senders:
        met = await meet(
            senders, stalled=stalled, slow=slow, lanes=lanes, uploads=uploads, seconds=seconds
        )
    return [
        "## A crowd of uploads",
        "",
        (
            f"{stalled} uploads that send 64 KiB and fall silent, {slow} that send 1 KB/s and come "
            f"back whenever they are given up, and {lanes} honest workers at a time that send 4 MiB"
            f" each, over {seconds:g} s. *Stalled ones gone*: after their last byte; the idle "
            "timeout is 30 s. *Memory*: what the server's private memory (RssAnon) grows by at "
            "most."
        ),
        "",
        (
            "| honest, 99th percentile, alone | among the others | memory | stalled ones gone "
            "within | slow ones given up |"
        ),
        "|---:|---:|---:|---:|---:|",
        (
            f"| {p99(met.idle):.2f} s | {p99(met.honest):.2f} s | {met.grown_bytes / 1e6:.0f} MB | "
            f"{max(ended.seconds for ended in met.stalled):.1f} s | {len(met.slow)} |"
        ),
        "",
    ]


async def control(folder: Path, *, num_uploads: int, seconds: float) -> list[str]:
    """The section about small calls beside large ones."""
    rows = []
    for uploads, busy in ((0, False), (0, True), (num_uploads, False), (num_uploads, True)):
        latencies, rounds = await beside(
            folder / f"{uploads}-{busy}", uploads=uploads, busy=busy, seconds=seconds
        )
        rows.append(
            f"| {uploads} | {'yes' if busy else 'no'} | {_ms(latencies, 0.5)} | "
            f"{_ms(latencies, 0.99)} | {len(latencies)} | "
            f"{', '.join(f'{second:.1f}' for second in rounds) or '–'} |"
        )
    return [
        "## Control calls",
        "",
        (
            f"Heartbeats over a worker's stream and polls for a task, {seconds:g} s of them by "
            "turns, while so many uploads of 8 MiB run at every moment and another run of the "
            "server aggregates: 4 updates of 24 layers of 768 x 768, rank 64, by the optimal "
            "method."
        ),
        "",
        (
            "| uploads | aggregating | median, ms | 99th percentile, ms | calls | "
            "seconds in aggregation, by round |"
        ),
        "|---:|---|---:|---:|---:|---|",
        *rows,
        "",
    ]


def _ms(latencies: Sequence[float], quantile: float) -> str:
    return f"{1e3 * latencies[int(quantile * len(latencies))]:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--quick", action="store_true", help="small numbers, about a minute")
    given = parser.parse_args()
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# Bounds",
        "",
        (
            f"Measured by `python benchmarks/bounds.py` at commit {commit()} on {machine()}, whose "
            f"load was {os.getloadavg()[1]:.1f} from other work at the start. {intro}"
        ),
        "",
    ]
    numbers = (20, 5, 35.0) if given.quick else (200, 50, 60.0)
    with tempfile.TemporaryDirectory() as folder:
        stalled, slow, seconds = numbers
        lines += asyncio.run(
            crowd(Path(folder) / "crowd", stalled=stalled, slow=slow, seconds=seconds)
        )
        seconds, uploads = (4.0, 4) if given.quick else (15.0, 32)
        lines += asyncio.run(control(Path(folder), num_uploads=uploads, seconds=seconds))
    given.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
