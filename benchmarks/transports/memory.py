"""The server's private memory while a round of many workers comes in and is closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.processes import Watched, watched
from transports.adapters import Adapter, run_of
from transports.federation import events_until, federation
from transports.workers import Workers

from fedlora.runs.report import EventType

__all__ = ["memory"]


def memory(folder: Path, pool: Workers, rows: Sequence[tuple[Adapter, int, str]]) -> list[str]:
    """The section of the page.

    Args:
        folder: on the disk to be measured.
        pool: processes of the workers.
        rows: adapter, workers, method.
    """
    lines = [
        "## Memory",
        "",
        (
            "One round in which all workers send at the same time, each over a connection of its "
            f"own, from {pool.num_processes} processes. RssAnon of the server in MB: private "
            "memory, without the page cache. *Idle*: all workers have registered. *Receiving*: the"
            " most above that until the last upload is acknowledged. *Closing*: from then until "
            "the round is combined, published and certified."
        ),
        "",
        "| workers | MB a worker | method | idle | receiving | closing |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for adapter, count, method in rows:
        receiving, closing = _peaks(folder / "round", pool, adapter, count, method)
        idle = receiving.idle_bytes
        lines.append(
            f"| {count} | {adapter.num_bytes / 1e6:.3g} | `{method}` | {idle / 1e6:.0f} | "
            f"{receiving.above_idle / 1e6:.0f} | {(closing.peak_bytes - idle) / 1e6:.0f} |"
        )
        print(lines[-1], flush=True)
    return [*lines, ""]


def _peaks(
    folder: Path, pool: Workers, adapter: Adapter, count: int, method: str
) -> tuple[Watched, Watched]:
    spec = run_of(adapter, workers=count, rounds=1, method=method, certify_every=1)
    with federation(folder, pool, adapter, spec, count) as served:
        with watched(lambda: [served.pid]) as receiving:
            pool.all("ready")
            pool.all("encode")
            pool.all("push")
        with watched(lambda: [served.pid]) as closing:
            events_until(served, EventType.CERTIFICATE_READY, 1)
        pool.all("end")
    return receiving, closing
