"""Real child processes: started, ended in order, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fedlora_cli.processes import ManagedProcess, child_environment, describe_exit, stop_all

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""

OBEDIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True:
    time.sleep(60)
"""

PARENT = """
import os, sys, time
from pathlib import Path
from fedlora_cli.processes import ManagedProcess
child = ManagedProcess("c", "service", environment=dict(os.environ), log=Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def environment(tmp_path):
    def environment(source: str) -> dict[str, str]:
        (tmp_path / "service.py").write_text(source)
        paths = [str(tmp_path), *(p for p in sys.path if p)]
        return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    return environment


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path, environment):
    processes = []

    def start(source: str) -> ManagedProcess:
        log = tmp_path / f"{len(processes)}.log"
        process = ManagedProcess("c", "service", environment=environment(source), log=log)
        process.start()
        processes.append(process)
        until(lambda: "ready" in process.tail())
        return process

    yield start
    for process in processes:
        process.send(signal.SIGKILL)
        process.wait(10)
        process.close()


def test_a_process_that_obeys_ends_with_its_own_code(started):
    process = started(OBEDIENT)
    assert process.is_running
    stop_all([[process]], 20.0)
    assert process.poll() == 0


def test_a_process_that_does_not_is_killed_after_its_grace(started):
    process = started(STUBBORN)
    stop_all([[process]], 0.5)
    assert process.poll() == -signal.SIGKILL
    assert "asked" in process.tail()


def test_a_second_group_is_told_only_once_the_first_is_gone(started):
    first, second = started(STUBBORN), started(STUBBORN)
    begun = time.monotonic()
    stop_all([[first], [second]], 0.3)
    assert time.monotonic() - begun >= 0.6
    assert "asked" in second.tail()


def test_children_die_with_a_parent_that_is_killed(tmp_path, environment):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        env=environment(STUBBORN),
    )
    child = psutil.Process(int(parent.stdout.readline()))
    until(lambda: "ready" in (tmp_path / "log").read_text())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_child_is_the_module_itself(started):
    process = started(OBEDIENT)
    command = psutil.Process(process.pid).cmdline()
    assert command[1:3] == ["-m", "service"]


def test_the_tail_of_a_long_log_is_its_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(50_000)))
    process = ManagedProcess("c", "service", environment={}, log=log)
    assert process.tail(2) == "line 49998\nline 49999"
    assert ManagedProcess("c", "m", environment={}, log=tmp_path / "none").tail() == ""


def test_children_get_their_share_of_threads_and_no_second_configuration():
    environ = {"FEDLORA_ROUNDS__NUM_ROUNDS": "3", "FEDLORA_LOG_LEVEL": "debug", "PATH": "x"}
    environment = child_environment(environ, threads=2)
    assert "FEDLORA_ROUNDS__NUM_ROUNDS" not in environment
    assert environment["FEDLORA_LOG_LEVEL"] == "debug"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["PATH"] == "x"


def test_ends_are_described():
    assert describe_exit(-signal.SIGKILL) == "was killed by SIGKILL"
    assert describe_exit(6) == "ended with code 6 (device)"
    assert describe_exit(77) == "ended with code 77"
