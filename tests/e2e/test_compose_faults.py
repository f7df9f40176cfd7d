"""A federation in containers whose engine is not kind to it."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.compose import Project, inspect, missing_engine
from support.compose_federation import RUN, federation, wait_for
from support.fault_log import record

from fedlora.proto.v1 import admin_pb2

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(missing_engine()), reason=f"no Docker engine: {missing_engine()}"),
]

NUM_ROUNDS = 14
"""with two workers: more than twenty acknowledged updates around the faults"""


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def away(project: Project, begin: tuple[str, ...], end: tuple[str, ...]) -> Iterator[None]:
    """A fault for as long as the block lasts."""
    docker(*begin)
    try:
        yield
    finally:
        docker(*end)


def test_a_federation_survives_its_engine(tmp_path: Path) -> None:
    """Paused, killed, cut off, out of memory, and all of it at once as when the machine is lost."""
    with federation(tmp_path, num_rounds=NUM_ROUNDS) as project:
        (aggregator,) = project.containers("aggregator")
        first, second = project.containers("worker")
        completed = admin_pb2.EVENT_TYPE_ROUND_COMPLETED
        wait_for(project, completed)
        with away(project, ("pause", aggregator), ("unpause", aggregator)):
            # Nobody answers: a health check of the engine comes and fails meanwhile.
            docker("exec", first, "python", "-c", "import time; time.sleep(15)")
        wait_for(project, completed, 3)
        docker("kill", "--signal", "KILL", aggregator)
        docker("start", aggregator)
        project("up", "--detach", "--wait", "--no-build", timeout=300)
        wait_for(project, completed, 5)
        (network,) = [n for n in networks(first) if "out" not in n]
        with away(
            project,
            ("network", "disconnect", network, first),
            ("network", "connect", network, first),
        ):
            wait_for(project, admin_pb2.EVENT_TYPE_WORKER_LOST)
        wait_for(project, completed, 7)
        # The kernel kills what the limit leaves no room for: whatever it chooses.
        hog = "x = bytearray(6 << 30)"
        subprocess.run(["docker", "exec", second, "python", "-c", hog], capture_output=True)
        wait_for(project, completed, 9)
        everybody = [aggregator, first, second]
        docker("kill", "--signal", "KILL", *everybody)
        docker("start", *everybody)
        project("up", "--detach", "--wait", "--no-build", timeout=300)
        wait_for(project, admin_pb2.EVENT_TYPE_RUN_COMPLETED, timeout=900)
        events = list(project.events(RUN, timeout=60))
        reports = rounds_of(project)
    committed = [e for e in events if e.type == admin_pb2.EVENT_TYPE_UPDATE_COMMITTED and e.round]
    told = {(e.round, e.worker): e.detail["digest"] for e in committed}
    counted = {(r.round, u.worker): u.digest for r in reports for u in r.updates}
    twice = sum(n - 1 for n in Counter((e.round, e.worker) for e in committed).values())
    record(
        faults=5,
        acknowledged=len(committed),
        lost=len(told.items() - counted.items()),
        twice=twice,
    )
    assert counted == told
    assert twice == 0
    assert len(committed) >= 20, "void"
    assert [r.round for r in reports] == list(range(1, NUM_ROUNDS + 1))


def networks(container: str) -> list[str]:
    found: dict[str, object] = inspect(container)["NetworkSettings"]["Networks"]  # type: ignore[index]
    return list(found)


def rounds_of(project: Project) -> list[object]:
    from fedlora.proto.v1 import admin_pb2_grpc

    with project.dial() as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        return [r.round for r in stub.ListRounds(admin_pb2.ListRoundsRequest(run=RUN), timeout=30)]
