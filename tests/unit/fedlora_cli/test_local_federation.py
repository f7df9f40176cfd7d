"""`fedlora run` with real processes: killed, interrupted, resumed; nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.tiny_run import write_tiny_run
from typer.testing import CliRunner, Result

from aggregator_service.config import AggregatorConfig
from fedlora.adapters.peft_files import read_peft_folder
from fedlora.config import LocalWorkers
from fedlora.devices import Device, NvmlDevices
from fedlora.errors import FedLoraError
from fedlora.exit_codes import ExitCode, exit_code_of
from fedlora_cli.app import app
from fedlora_cli.configuration import load
from fedlora_cli.forked import can_fork
from fedlora_cli.local_processes import LocalProcesses
from fedlora_cli.run_folder import RunFolder

ROOT = Path(__file__).parents[3]

NUM_CHILDREN = 3 + can_fork()
"""the aggregator, two workers, and what they are forks of"""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def config(tmp_path):
    return write_tiny_run(tmp_path)


class Command:
    """`fedlora run CONFIG ...` as a process in a folder of its own."""

    def __init__(self, config: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedlora_cli", "run", str(config), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=config.parent,
            env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
            text=True,
        )
        self.children: set[psutil.Process] = set()

    def read_until(self, words: str) -> None:
        """Reads output up to a line with these words, and notes the children there are."""
        for line in self.process.stdout:
            if words in line:
                self.children |= set(psutil.Process(self.process.pid).children(recursive=True))
                return
        raise AssertionError(f"{words!r} never came; {self.process.stderr.read()}")

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err

    def no_child_is_left(self) -> bool:
        return not any(
            child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in self.children
        )


def here(*arguments: str) -> Result:
    """A command that starts no process, in this one."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_survives_sigkill_and_ctrl_c_and_leaves_no_process(config, monkeypatch):
    folder = config.parent / "runs" / "tiny"

    killed = Command(config, "--plain")
    killed.read_until("starting 2 workers")
    until(lambda: len(psutil.Process(killed.process.pid).children(recursive=True)) == NUM_CHILDREN)
    killed.children |= set(psutil.Process(killed.process.pid).children(recursive=True))
    killed.process.kill()
    killed.finish()
    until(killed.no_child_is_left)

    interrupted = Command(config, "--json")
    interrupted.read_until('"round_completed"')
    assert len(interrupted.children) == NUM_CHILDREN
    interrupted.process.send_signal(signal.SIGINT)
    code, _, err = interrupted.finish()
    assert code == ExitCode.INTERRUPTED
    assert "the same command resumes the run" in err
    assert interrupted.no_child_is_left()

    code, out, err = Command(config).finish()
    assert code == 0, err
    assert "PeftModel.from_pretrained" in out
    assert (folder / "final" / "adapter_model.safetensors").is_file()
    assert "<svg" in (folder / "report.html").read_text()
    metrics = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["round"] for m in metrics] == [1, 2]
    history = events(folder)
    assert [e["sequence"] for e in history] == list(range(1, len(history) + 1))
    assert sum(e["type"] == "run_created" for e in history) == 1

    own = folder / "own"
    done = here("export", str(folder), "--worker", "worker-1", "--out", str(own))
    assert done.exit_code == 0
    assert read_peft_folder(own).r == 2

    monkeypatch.chdir(config.parent)
    done = here("run", str(config))
    assert (done.exit_code, "complete already" in done.stdout) == (0, True)
    with pytest.raises(FedLoraError, match=r"rounds\.num_rounds: 2 -> 3") as caught:
        here("run", str(config), "--set", "rounds.num_rounds=3")
    assert exit_code_of(caught.value) == ExitCode.USAGE


def test_the_workers_of_one_machine_may_share_a_gpu(config):
    processes = LocalProcesses(load(config), LocalWorkers(), RunFolder(config.parent / "run"))
    worker = processes.worker(0, "127.0.0.1:1")
    assert worker.environment["FEDLORA_WORKER__SHARE_DEVICE"] == "true"


def test_a_run_folder_that_was_moved_or_copied_is_written_where_it_is_now(config, tmp_path):
    def written(folder: Path) -> Path:
        processes = LocalProcesses(load(config), LocalWorkers(), RunFolder(folder))
        export_dir = processes.aggregator().environment["FEDLORA_SERVER__EXPORT_DIR"]
        return Path(export_dir, load(config).need_run().name).resolve()

    assert written(tmp_path / "one") == tmp_path / "one"
    shutil.copytree(tmp_path / "one", tmp_path / "two", symlinks=True)
    assert written(tmp_path / "two") == tmp_path / "two"
    (tmp_path / "two").rename(tmp_path / "three")
    assert written(tmp_path / "three") == tmp_path / "three"


def test_identities_of_a_federation_over_machines_are_left_aside(config, tmp_path):
    """With them the server would speak TLS, and neither the command nor the workers would."""
    overrides = [
        f"{key}=fed"
        for key in (
            "server.identity_dir", "server.authority_dir", "server.tokens_file",
            "worker.identity_dir", "worker.token_file", "worker.invitation",
        )
    ]  # fmt: skip
    loaded = load(config, [*overrides, "server.enrolment_address=127.0.0.1:0"])
    folder = RunFolder(tmp_path / "run")
    folder.prepare(loaded, fresh=False)
    processes = LocalProcesses(loaded, LocalWorkers(), folder)
    told = load(folder.config_file, environ=processes.aggregator().environment)
    server = told.build("server", AggregatorConfig)
    assert (server.identity_dir, server.authority_dir, server.tokens_file) == (None, None, None)
    assert server.enrolment_address == ""
    told = load(folder.config_file, environ=processes.worker(0, "127.0.0.1:1").environment)
    assert {told.section("worker")[k] for k in ("identity_dir", "token_file", "invitation")} == {
        None
    }


def test_a_worker_that_cannot_succeed_ends_the_run_with_its_words(config):
    (config.parent / "rows.jsonl").unlink()
    command = Command(config, "--run-dir", "elsewhere")
    command.read_until("starting 2 workers")
    code, _, err = command.finish()
    assert code == ExitCode.USAGE
    assert "the run has failed" in err
    assert "rows.jsonl" in err
    assert command.no_child_is_left()
    assert (config.parent / "elsewhere" / "events.jsonl").is_file()


@pytest.mark.parametrize(
    ("configured", "expected"),
    [("127.0.0.1:9401", "127.0.0.1:9402"), ("127.0.0.1:0", "127.0.0.1:0"), ("", "")],
)
def test_each_worker_shows_its_metrics_on_a_port_of_its_own(
    config, tmp_path, configured: str, expected: str
):
    loaded = load(config, (f"worker.metrics_address={configured}",), environ={})
    processes = LocalProcesses(loaded, LocalWorkers(), RunFolder(tmp_path / "run"))
    worker = processes.worker(1, "127.0.0.1:8400")
    assert worker.environment["FEDLORA_WORKER__METRICS_ADDRESS"] == expected


@pytest.mark.parametrize(
    ("devices", "present", "is_on_cpu"),
    [
        (("cpu",), 1, True),
        (("auto",), 0, True),
        (("auto",), 1, False),
        (("cpu", "auto"), 1, False),
        (("cuda:0",), 1, False),
    ],
)
def test_workers_are_forks_only_where_none_of_them_can_come_to_a_gpu(
    config, tmp_path, monkeypatch, devices: tuple[str, ...], present: int, is_on_cpu: bool
):
    gpus = tuple(Device(number=str(i), uuid=f"GPU-{i}", name="gpu") for i in range(present))
    monkeypatch.setattr(NvmlDevices, "present", lambda _: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    processes = LocalProcesses(load(config), LocalWorkers(devices=devices), RunFolder(tmp_path))
    processes.prepare()
    try:
        assert (processes._fork_server is not None) is (is_on_cpu and can_fork())
    finally:
        processes.close()
