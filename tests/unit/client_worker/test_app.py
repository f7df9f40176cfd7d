"""The worker as a process of its own: signals and exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from support.fake_federation import FakeFederation, train_task
from support.processes import worker_process
from support.tiny_trainer import adapter_file

from client_worker.app import run_worker
from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from client_worker.ports import Trainer
from fedlora.exit_codes import ExitCode
from fedlora.runs.tasks import Limits, Registration

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
    return server.count("KeepAlive") > 1


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
@pytest.mark.parametrize("moment", [training, waiting, loading])
def test_a_signal_ends_the_process_at_once_and_in_good_order(
    tmp_path: Path, moment: Callable[[FakeFederation], bool], signum: signal.Signals, code: int
):
    plan = [train_task()] if moment is training else []
    server = FakeFederation(
        plan, adapters={0: adapter_file(seed=1)}, limits=LIMITS, keep_waiting=True
    )
    mode = ["load"] if moment is loading else []
    with server, worker_process(tmp_path, server.address, *mode) as running:
        server.wait_until(lambda: moment(server))
        running.process.send_signal(signum)
        log = running.log_at_its_end()
    assert running.process.poll() == code, log
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


def test_a_device_that_is_too_small_for_the_model_is_code_6_and_not_an_internal_error(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with FakeFederation([train_task()], limits=LIMITS) as server:
        code, lines = told_on_too_small_a_device(server.address)
    assert code == ExitCode.DEVICE
    reason = "the device is too small: CUDA out of memory. Tried to allocate 9 GiB."
    assert (lines[-1]["event"], lines[-1]["reason"]) == ("gone", reason)


def test_plain_text_to_another_machine_is_warned_of_though_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # This machine too, by a name that is nobody's loopback.
    for host, expected in (("0.0.0.0", 1), ("127.0.0.1", 0)):
        with FakeFederation([train_task()], limits=LIMITS) as server:
            address = f"{host}:{server.address.rpartition(':')[2]}"
            code, lines = told_on_too_small_a_device(address, insecure=True)
            assert (code, server.count("Register")) == (ExitCode.DEVICE, 1)
        warnings = [x for x in lines if x["event"] == "plain_text"]
        assert warnings == expected * [
            {"event": "plain_text", "log_level": "warning", "server": address}
        ]


def told_on_too_small_a_device(
    address: str, **settings: Any
) -> tuple[int, list[structlog.typing.EventDict]]:
    """Exit code and log of a worker that ends once it is to load the model."""

    def load(_: Registration) -> Trainer:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    data = DataConfig(path="unused")
    config = WorkerConfig(server=address, name="w", device="cpu", data=data, **settings)
    with structlog.testing.capture_logs() as lines:
        return run_worker(config, create_trainer=load), lines
