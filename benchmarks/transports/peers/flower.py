"""Rounds of Flower on the same payload: its current runtime, and its legacy gRPC path.

Flower lives in an environment of its own, since its dependencies are not ours:

    python -m venv FOLDER && FOLDER/bin/pip install flwr==1.41.0 numpy

and FEDLORA_FLOWER_PYTHON, or the option --flower-python, names FOLDER/bin/python.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from shared.processes import Watched, tree, watched
from transports.adapters import Adapter

__all__ = ["PeerRounds", "legacy_rounds", "runtime_rounds", "version"]

_HERE = Path(__file__).parent
_LONGEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class PeerRounds:
    """What a peer's rounds took, the first left out."""

    seconds: list[float]
    """of each"""
    server: Watched
    """the server and its children, over all rounds"""
    server_cpu_seconds: float
    """per round"""

    @property
    def median(self) -> float:
        """Seconds of a round."""
        return statistics.median(self.seconds)


def version(python: Path) -> str:
    """Flower's version in an environment."""
    asked = [str(python), "-c", "import importlib.metadata as m; print(m.version('flwr'))"]
    return subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def legacy_rounds(
    python: Path, folder: Path, adapter: Adapter, *, count: int, rounds: int
) -> PeerRounds:
    """`start_server` and `start_client` of `flwr.compat`, one gRPC message per adapter."""
    with _folder(folder) as work, _processes(work, python.parent) as start:
        address = f"127.0.0.1:{_free_port()}"
        shape = [adapter.layers, adapter.rank, adapter.width, count, rounds + 1]
        path, out = str(_HERE / "legacy_server.py"), work / "times"
        server = start([str(python), path, address, *map(str, shape)], out=out)
        _wait(work, lambda: _listens(address), [server])
        with watched(lambda: [server.pid]) as process:
            clients = [
                start([str(python), str(_HERE / "legacy_client.py"), address]) for _ in range(count)
            ]
            _wait(work, lambda: bool(out.read_text()), [server, *clients])
        return _rounds(out, process)


def runtime_rounds(
    python: Path, folder: Path, adapter: Adapter, *, count: int, rounds: int
) -> PeerRounds:
    """SuperLink, SuperNodes and `flwr run`, as their documentation starts them."""
    programs = python.parent
    with _folder(folder) as work, _processes(work, python.parent) as start:
        address = f"127.0.0.1:{_free_port()}"
        (work / "home").mkdir()
        (work / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\n'
            "insecure = true\n"
        )
        shutil.copytree(_HERE / "app", work / "app")
        link = start(
            [
                str(programs / "flower-superlink"),
                "--insecure",
                "--disable-runtime-dependency-installation",
                *("--port", address.split(":")[1]),
            ]
        )
        _wait(work, lambda: _listens(address), [link])
        nodes = [
            start(
                [
                    str(programs / "flower-supernode"),
                    "--insecure",
                    *("--superlink", address),
                    *("--port", str(_free_port())),
                ]
            )
            for _ in range(count)
        ]
        out = work / "times"
        out.touch()
        values = {
            "layers": adapter.layers,
            "rank": adapter.rank,
            "width": adapter.width,
            "clients": count,
            "rounds": rounds + 1,
            "times": f"'{out}'",
        }
        given = " ".join(f"{key}={value}" for key, value in values.items())
        # To list a tree takes time of its own: less often, which can only make less of the peak.
        with watched(lambda: tree(link.pid), every=0.5) as process:
            run = start([str(programs / "flwr"), "run", str(work / "app"), "--run-config", given])
            if run.wait(120) != 0:
                raise RuntimeError((work / "log").read_text())
            _wait(work, lambda: bool(out.read_text()), [link, *nodes])
        return _rounds(out, process)


# --- processes of the peer ------------------------------------------------------------------


def _rounds(out: Path, process: Watched) -> PeerRounds:
    times = json.loads(out.read_text())
    seconds = [end - begin for begin, end in times[1:]]
    return PeerRounds(seconds, process, process.cpu_seconds / len(times))


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Starter:
    """Starts processes whose home is a folder, and that tell nobody of being used."""

    def __init__(
        self, folder: Path, programs: Path, started: list[subprocess.Popen[bytes]]
    ) -> None:
        self._folder, self._started = folder, started
        self._environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            # Flower's programs start one another by name.
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, command: Sequence[str], out: Path | None = None) -> subprocess.Popen[bytes]:
        log = self._folder / "log"
        with log.open("ab") as said, (out or log).open("ab") as printed:
            process = subprocess.Popen(
                command, env=self._environment, cwd=self._folder, stdout=printed, stderr=said
            )
        self._started.append(process)
        return process


@contextmanager
def _processes(folder: Path, programs: Path) -> Iterator[_Starter]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield _Starter(folder, programs, started)
    finally:
        running = [child for child in started if child.poll() is None]
        for pid in [pid for child in running for pid in tree(child.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        for child in running:
            child.wait()


def _wait(
    folder: Path, done: Callable[[], bool], needed: Sequence[subprocess.Popen[bytes]]
) -> None:
    """Waits for something that no process may end before."""
    until = time.monotonic() + _LONGEST_SECONDS
    while not done():
        if time.monotonic() > until or any(process.poll() for process in needed):
            raise RuntimeError((folder / "log").read_text())
        time.sleep(0.05)


def _listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
