"""A server that starts on a long past, and what that past weighs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

from reliabilities.history import LAYERS, write_history

from aggregator_service.store.sqlite import DATABASE_NAME

__all__ = ["opening"]


_CHILD = """
import asyncio, sys, time
from pathlib import Path
from aggregator_service.app import Aggregator
from aggregator_service.config import AggregatorConfig

async def main(folder: Path, last: int) -> None:
    config = AggregatorConfig(
        address="127.0.0.1:0", state_dir=folder / "state", export_dir=folder / "runs", device="cpu"
    )
    began = time.perf_counter()
    async with Aggregator(config):
        print("seconds", time.perf_counter() - began)
        events = folder / "runs" / "history" / "events.jsonl"
        while last and not (events.exists() and events.read_bytes().count(b"\\n") >= last):
            await asyncio.sleep(1)
        print("seconds", time.perf_counter() - began)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def opening(folder: Path, *, num_rounds: int, num_workers: int) -> list[str]:
    """The section of the page."""
    state = write_history(folder / "state", num_rounds=num_rounds, num_workers=num_workers)
    first, written = _opened(folder, until=state.last_sequence)
    again = min(_opened(folder, until=0)[0] for _ in range(3))
    database = folder / "state" / DATABASE_NAME
    total, updates = database.stat().st_size, num_rounds * num_workers
    parts = ", ".join(
        f"{name} {size / updates:,.0f}" for name, size in _sizes(database) if size >= updates
    )
    return [
        "## A long past",
        "",
        (
            f"{num_rounds:,} rounds of {num_workers} workers, {LAYERS} adapted layers, every round "
            f"certified. The database has {total / 1e6:,.0f} MB: {total / updates:,.0f} bytes per "
            f"round and worker ({parts}). From nothing to serving, imports left out: "
            f"{again:.2f} s. Where the run directory is gone: {first:.2f} s; the directory is "
            f"written behind the server's back within {written:,.0f} s."
        ),
        "",
    ]


def _opened(folder: Path, *, until: int) -> tuple[float, float]:
    """Seconds until a server serves, and until its run directory has so many events."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(until)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    words = [line.split() for line in done.stdout.splitlines()]
    opened, written = (float(line[1]) for line in words if line[0] == "seconds")
    return opened, written


def _sizes(database: Path) -> list[tuple[str, int]]:
    """Bytes of each table with its indexes, largest first."""
    db = sqlite3.connect(database)
    rows = db.execute(
        """
        SELECT tbl_name, sum(pgsize) FROM dbstat JOIN sqlite_schema USING (name)
        GROUP BY tbl_name ORDER BY 2 DESC
        """
    ).fetchall()
    db.close()
    return rows
