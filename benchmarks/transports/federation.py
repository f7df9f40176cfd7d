"""One federation of moved adapters: a server, its workers, and the times of its rounds."""

from __future__ import annotations

import itertools
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.processes import Watched, watched
from shared.server import Server, server
from transports.adapters import Adapter, run_of
from transports.workers import Workers

from fedlora.runs.report import EventType, RunEvent
from fedlora.runs.spec import RunSpec
from fedlora_cli.admin_client import AdminClient

__all__ = ["Rounds", "events_until", "federation", "rounds_of"]


@contextmanager
def federation(
    folder: Path, pool: Workers, adapter: Adapter, spec: RunSpec, count: int
) -> Iterator[Server]:
    """A server whose workers have joined; its state is thrown away on leaving."""
    try:
        with server(folder, spec) as served:
            pool.join(served.address, adapter, count)
            yield served
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def events_until(served: Server, last: EventType, round: int) -> list[RunEvent]:
    """A run's events until one of a kind and round; waits for it.

    Raises:
        RuntimeError: the run has ended without it.
    """
    found = []
    with AdminClient(served.address) as client:
        for event in client.watch_run("transport"):
            found.append(event)
            if event.type is last and event.round == round:
                return found
    raise RuntimeError(f"expected {last.value} of round {round}, got {found[-1].type.value} last")


@dataclass(frozen=True, slots=True)
class Rounds:
    """What some rounds took, the first left out."""

    seconds: list[float]
    """from one round's first request for the adapter to the next one's"""
    server: Watched
    """over all rounds, the first included"""
    server_cpu_seconds: float
    """per round"""
    worker_cpu_seconds: float
    """per round, of all workers"""
    handovers: list[float]
    """seconds from the last byte of a round's last update to the first of the new adapter"""
    closes: list[float]
    """seconds of them in which the server combined and published"""

    @property
    def median(self) -> float:
        """Seconds of a round."""
        return statistics.median(self.seconds)


def rounds_of(folder: Path, pool: Workers, adapter: Adapter, *, count: int, rounds: int) -> Rounds:
    """Whole rounds as workers drive them: pull, change every value, push, wait.

    Args:
        folder: on the disk to be measured.
        pool: processes of the workers.
        adapter: what is moved.
        count: workers.
        rounds: that are measured; one before and one after them are not.
    """
    spec = run_of(adapter, workers=count, rounds=rounds + 2)
    with federation(folder, pool, adapter, spec, count) as served:
        with watched(lambda: [served.pid]) as process:
            ran = pool.all("run")
            events = events_until(served, EventType.ROUND_COMPLETED, rounds + 2)
        pool.all("end")
    notes = [[of[i] for of in ran.of] for i in range(rounds + 2)]
    starts = [min(n["pull_began"] for n in of) for of in notes]
    sent = [max(n["last_byte"] for n in of) for of in notes]
    came = [min(n["first_byte"] for n in of) for of in notes]
    closed = {e.round: e.time for e in events if e.type is EventType.ROUND_CLOSED}
    published = {e.round: e.time for e in events if e.type is EventType.ADAPTER_PUBLISHED}
    return Rounds(
        seconds=[after - start for start, after in itertools.pairwise(starts[1:])],
        server=process,
        server_cpu_seconds=process.cpu_seconds / (rounds + 2),
        worker_cpu_seconds=ran.cpu_seconds / (rounds + 2),
        handovers=[came[i + 1] - sent[i] for i in range(1, rounds + 1)],
        closes=[published[i + 1] - closed[i + 1] for i in range(1, rounds + 1)],
    )
