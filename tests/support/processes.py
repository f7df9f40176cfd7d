"""The aggregator as a process of its own, to be killed."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlora.config import run_entries, toml_text
from fedlora.runs.spec import RunSpec
from fedlora_cli.forked import ForkedProcess, ForkServer, can_fork

_START_SECONDS = 60.0

_LIBRARIES = (
    "torch",
    "grpc_health.v1.health",
    "aggregator_service.aggregation.registry",
    "aggregator_service.aggregation.driver",
    "aggregator_service.reporting.run_directory",
    "aggregator_service.rounds.machine",
    "client_worker.app",
)
"""what costs seconds; none of it imports `failpoints`, which reads the environment"""


class ServerProcess:
    """`python -m aggregator_service` on a free loopback port; a context manager.

    Args:
        folder: where state, configuration and log go.
        run: run that its configuration describes.
        is_forked: with the libraries loaded already, where the platform can; or executed.
        settings: keys of the section [server].
    """

    def __init__(
        self, folder: Path, run: RunSpec, *, is_forked: bool = True, **settings: object
    ) -> None:
        self.folder = folder
        self._is_forked = is_forked
        if is_forked and can_fork():
            # Here, in the main thread: the server may be started from another.
            _fork_server()
        folder.mkdir(parents=True, exist_ok=True)
        self._port_file = folder / "address"
        config = folder / "run.toml"
        config.write_text(toml_text(run_entries(run)))
        environment: Mapping[str, object] = {
            "FEDLORA_CONFIG": config,
            "FEDLORA_SERVER__ADDRESS": "127.0.0.1:0",
            "FEDLORA_SERVER__STATE_DIR": folder / "state",
            "FEDLORA_SERVER__PORT_FILE": self._port_file,
            "FEDLORA_SERVER__DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            **{f"FEDLORA_SERVER__{k.upper()}": v for k, v in settings.items()},
        }
        self._environment = {**os.environ, **{k: str(v) for k, v in environment.items()}}
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None

    @property
    def address(self) -> str:
        return self._port_file.read_text()

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def start(self, failpoints: str = "") -> ServerProcess:
        """Starts the process, with failpoints armed, and waits until it serves."""
        self._port_file.unlink(missing_ok=True)
        self.process = start(
            "aggregator_service",
            environment={**self._environment, "FEDLORA_FAILPOINTS": failpoints},
            log=self.folder / "server.log",
            folder=self.folder,
            is_forked=self._is_forked,
        )
        until = time.monotonic() + _START_SECONDS
        while not self._port_file.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the server did not start:\n{self.log}")
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        return self

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def pause(self) -> None:
        """SIGSTOP: nothing runs until `resume`; locks, sockets and files stay as they are."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def rss_anon_bytes(self) -> int:
        """Private memory: neither page cache nor mapped files."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def start(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    log: Path,
    folder: Path,
    is_forked: bool = True,
) -> subprocess.Popen[bytes] | ForkedProcess:
    """`python -m MODULE ARGUMENT...`.

    Args:
        module: what is run.
        arguments: of it.
        environment: its whole environment.
        log: file its output is added to.
        folder: its working directory.
        is_forked: with the libraries loaded already, where the platform can; or executed.
    """
    if is_forked and can_fork():
        return _fork_server().fork(
            module, *arguments, name=module, environment=environment, log=log, folder=folder
        )
    with log.open("ab") as output:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)


@contextmanager
def worker_process(folder: Path, *arguments: object) -> Iterator[WorkerProcess]:
    """`support.worker_process` with these arguments; killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    worker = WorkerProcess(
        start(
            "support.worker_process",
            *map(str, arguments),
            environment={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            log=folder / "worker.log",
            folder=folder,
        ),
        folder / "worker.log",
    )
    try:
        yield worker
    finally:
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(10)


@dataclass(frozen=True)
class WorkerProcess:
    """A worker that runs, or has ended."""

    process: subprocess.Popen[bytes] | ForkedProcess
    file: Path

    def log_at_its_end(self) -> str:
        """All it has said, once it has ended."""
        self.process.wait(60)
        return self.file.read_text()


@functools.cache
def _fork_server() -> ForkServer:
    """One for all tests of this process. It dies with the thread that asks first."""
    assert threading.current_thread() is threading.main_thread()
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    folder = tempfile.TemporaryDirectory(prefix="fedlora-")
    log = Path(folder.name) / "libraries.log"
    server = ForkServer(_LIBRARIES, environment=environment, log=log)
    # Last registered, first called.
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server


def free_address() -> str:
    """A loopback address that nobody serves on, for a server that comes back under its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
