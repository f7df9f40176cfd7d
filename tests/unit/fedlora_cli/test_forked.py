"""Services forked from a process that has the libraries: like executed ones, and never left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.forked import ForkServer, can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="forks only on Linux")

SERVICE = """
import json, os, signal, sys, threading
import slow_library
print(json.dumps({
    "argv": sys.argv, "main": __name__, "loaded_by": slow_library.LOADED_BY, "folder": os.getcwd(),
    "word": os.environ.get("WORD"), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "leads_its_group": os.getpgid(0) == os.getpid(), "threads": threading.active_count(),
    "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "input": sys.stdin.read(),
}), flush=True)
if os.environ.get("STAY"):
    signal.pause()
sys.exit(int(os.environ.get("CODE", "0")))
"""

PARENT = """
import os, sys, time
from pathlib import Path
from fedlora_cli.forked import ForkServer
folder = Path(sys.argv[1])
server = ForkServer(["slow_library"], environment=dict(os.environ), log=folder / "server.log")
forked = server.fork(
    "service", name="c", environment=dict(os.environ), log=folder / "0.log", folder=folder)
print(server.pid, forked.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "slow_library.py").write_text("import os\nLOADED_BY = os.getpid()\n")
    paths = [str(tmp_path), *(p for p in sys.path if p)]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def server(tmp_path, environment):
    server = ForkServer(["slow_library"], environment=environment, log=tmp_path / "server.log")
    yield server
    server.close()


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_spoken(log) -> bool:
    return log.exists() and log.stat().st_size > 0


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def forked(server, tmp_path, environment, name="worker-0", **settings: str):
    return server.fork(
        "service",
        "--flag",
        name=name,
        environment={**environment, **settings},
        log=tmp_path / f"{name}.log",
        folder=tmp_path,
    )


def said(tmp_path, name="worker-0"):
    return json.loads((tmp_path / f"{name}.log").read_text())


def test_a_fork_is_as_if_it_had_been_executed(server, tmp_path, environment):
    process = forked(server, tmp_path, environment, WORD="own", CODE="3")
    assert process.wait(30) == 3
    words = said(tmp_path)
    # `python -m` says where the file is
    program, *arguments = words.pop("argv")
    assert (Path(program).name, arguments) == ("service.py", ["--flag"])
    assert words.pop("loaded_by") == server.pid
    assert words == {
        "main": "__main__",
        "folder": str(tmp_path),
        "word": "own",
        "cuda": environment.get("CUDA_VISIBLE_DEVICES"),
        "leads_its_group": True,
        "threads": 1,
        # Whoever runs the tests in the background of a shell has them ignored.
        "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "input": "",
    }


def test_each_has_its_own_environment_name_and_end(server, tmp_path, environment):
    stays = forked(server, tmp_path, environment, "a-name-of-more-than-15-bytes", STAY="1")
    ends = forked(server, tmp_path, environment, "b", WORD="b")
    assert ends.wait(30) == 0
    # Each has its name before it runs, and nobody says which of the two runs first.
    until(lambda: has_spoken(tmp_path / "a-name-of-more-than-15-bytes.log"))
    assert (said(tmp_path, "b")["word"], stays.poll()) == ("b", None)
    assert psutil.Process(stays.pid).name() == "a-name-of-more-"
    with pytest.raises(subprocess.TimeoutExpired):
        stays.wait(0.01)
    stays.send_signal(signal.SIGTERM)
    assert stays.wait(30) == -signal.SIGTERM
    stays.send_signal(signal.SIGTERM)


def test_the_process_that_imports_is_shown_no_gpu(tmp_path, environment):
    (tmp_path / "slow_library.py").write_text(
        "import os\nLOADED_BY = os.environ['CUDA_VISIBLE_DEVICES']\n"
    )
    environment["CUDA_VISIBLE_DEVICES"] = "0"
    server = ForkServer(["slow_library"], environment=environment, log=tmp_path / "server.log")
    forked(server, tmp_path, environment).wait(30)
    server.close()
    assert said(tmp_path)["loaded_by"] == ""


def test_forks_die_with_a_parent_that_is_killed(tmp_path, environment):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environment | {"STAY": "1"},
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    until(lambda: has_spoken(tmp_path / "0.log"))
    assert not any(is_gone(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: all(is_gone(pid) for pid in pids))


def test_one_that_is_killed_takes_its_forks_with_it_and_is_started_again(
    server, tmp_path, environment
):
    first, process = server.pid, forked(server, tmp_path, environment, STAY="1")
    until(lambda: has_spoken(tmp_path / "worker-0.log"))
    os.kill(first, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    until(lambda: is_gone(process.pid))
    again = forked(server, tmp_path, environment, "b")
    assert again.wait(30) == 0
    assert server.pid != first
    assert process.poll() == -signal.SIGKILL


def test_a_library_that_is_missing_is_the_services_own_business(tmp_path, environment):
    modules = ["no_such_library", "slow_library"]
    server = ForkServer(modules, environment=environment, log=tmp_path / "server.log")
    assert forked(server, tmp_path, environment).wait(30) == 0
    server.close()
    assert said(tmp_path)["loaded_by"] == server.pid


def test_a_library_that_kills_is_named_with_what_it_said(tmp_path, environment):
    (tmp_path / "slow_library.py").write_text(
        "import os\nprint('no such instruction', flush=True)\nos.abort()\n"
    )
    log = tmp_path / "server.log"
    server = ForkServer(["slow_library"], environment=environment, log=log)
    with pytest.raises(FedLoraError, match="slow_library dies of it") as caught:
        forked(server, tmp_path, environment)
    server.close()
    assert (caught.value.reason, caught.value.hint) == (
        Reason.INTERNAL,
        f"What it said is in {log}",
    )
    assert "no such instruction" in log.read_text()


def test_closing_leaves_nothing(server, tmp_path, environment):
    process = forked(server, tmp_path, environment, STAY="1")
    server.close()
    assert process.wait(30) == -signal.SIGKILL
    until(lambda: is_gone(process.pid))
