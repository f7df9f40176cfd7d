"""The worker as a process of its own: signals and exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fake_federation import FakeFederation, train_task
from support.tiny_trainer import adapter_file

from fedlora.runs.tasks import Limits

SCRIPT = Path(__file__).parents[2] / "support" / "worker_process.py"
LIMITS = Limits(heartbeat_interval_seconds=0.1)


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def training(server: FakeFederation) -> bool:
    return server.count("ReportMetrics") > 0


def waiting(server: FakeFederation) -> bool:
    return server.count("AwaitTask") > 0


def loading(server: FakeFederation) -> bool:
    return server.count("Heartbeat") > 1


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
@pytest.mark.parametrize("moment", [training, waiting, loading])
def test_a_signal_ends_the_process_at_once_and_in_good_order(
    moment: Callable[[FakeFederation], bool], signum: signal.Signals, code: int
):
    plan = [train_task()] if moment is training else []
    server = FakeFederation(
        plan, adapters={0: adapter_file(seed=1)}, limits=LIMITS, keep_waiting=True
    )
    mode = ["load"] if moment is loading else []
    with server, process(str(SCRIPT), server.address, *mode) as running:
        server.wait_until(lambda: moment(server))
        running.send_signal(signum)
        _, log = running.communicate(timeout=60)
    assert running.returncode == code, log
    assert [r.reason for r in server.requests("Leave")] == [f"stopped by {signum.name}"]
    assert not server.updates
    lines = [json.loads(line) for line in log.splitlines()]
    assert (lines[-1]["event"], lines[-1]["exit_code"]) == ("gone", code)
    assert {line["worker"] for line in lines} == {"w"}
    assert "token-" not in log


def test_a_mistake_in_the_configuration_is_one_line_and_code_2():
    with process("-m", "client_worker", "--server", "nowhere") as running:
        _, log = running.communicate(timeout=60)
    assert running.returncode == 2
    assert log.startswith("fedlora-worker: ")
    assert len(log.splitlines()) == 1
