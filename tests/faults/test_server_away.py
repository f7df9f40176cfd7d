"""A server that is killed in the middle of a round and stays away for a while.

No worker ends or trains again, and every worker's update counts once in each round.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.noted_worker import Submission, noted_worker, stored_submissions
from support.processes import ServerProcess
from support.runs import run_spec

from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.exit_codes import ExitCode
from fedlora.runs.tasks import Acknowledgement

NUM_WORKERS, NUM_ROUNDS = 10, 2


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    "seconds",
    [
        1.0,  # and the seconds that its start takes
        pytest.param(30.0, marks=pytest.mark.slow),
        pytest.param(300.0, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_an_outage_costs_neither_updates_nor_workers(tmp_path: Path, seconds: float):
    acknowledged: list[tuple[Submission, Acknowledgement]] = []
    server_is_gone = threading.Event()

    def until_the_server_is_gone(_step: int) -> None:
        server_is_gone.wait(60)

    spec = run_spec(num_rounds=NUM_ROUNDS, num_workers=NUM_WORKERS)
    with ServerProcess(tmp_path, spec, address=free_address()) as server, ExitStack() as stack:
        workers = [
            stack.enter_context(
                noted_worker(
                    server.address,
                    tmp_path / f"w-{i}",
                    f"w-{i}",
                    acknowledged,
                    on_step=until_the_server_is_gone if i % 2 else lambda _: None,
                )
            )
            for i in range(NUM_WORKERS)
        ]
        ends = [w.run_in_thread(seconds + 120) for w in workers]
        # Version 0, and one half of round 1.
        wait_until(lambda: len(acknowledged) == 1 + NUM_WORKERS // 2)
        server.kill()
        server_is_gone.set()
        threading.Event().wait(seconds)
        server.start()
        assert [end() for end in ends] == [ExitCode.OK] * NUM_WORKERS
        assert server.terminate() == 0
    for each in workers:
        (trainer,) = each.trainers
        assert [round for round, _ in trainer.trained] == [1, 2]
    with closing(SqliteStateStore(tmp_path / "state" / "fedlora.sqlite")) as store:
        stored = stored_submissions(store, BlobStore(tmp_path / "state"), NUM_ROUNDS)
    assert len({(round, worker) for round, worker, _ in stored}) == len(stored) == 21
    assert sorted(submission for submission, _ in acknowledged) == stored
