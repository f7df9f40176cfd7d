"""Child processes of the command line: started, watched, ended; their output in log files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fedlora.exit_codes import ExitCode
from fedlora_cli.forked import ForkedProcess, ForkServer

__all__ = ["ManagedProcess", "child_environment", "describe_exit", "metrics_address"]
__all__ += ["on_stop_signals", "stop_all"]

_TAIL_BYTES = 64 * 1024

# Libraries each start as many threads as there are cores; with several processes on one machine
# they would fight over them.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


class ManagedProcess:
    """One service in a process of its own.

    Args:
        name: for people, "worker-0".
        module: started with `python -m`.
        environment: the whole environment of the process.
        log: file its output is added to.
        fork_server: what it is forked by; None executes it.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *,
        environment: Mapping[str, str],
        log: Path,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.environment = dict(environment)
        self.started_at = 0.0
        self.num_starts = 0
        self._module = module
        self._fork_server = fork_server
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None before the first start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts it, from the main thread as `fedlora_cli.child` requires."""
        if threading.current_thread() is not threading.main_thread():
            raise AssertionError("a child outlives the thread that starts it only by dying")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        server = self._fork_server
        self._process = self._execute() if server is None else self._fork(server)
        self.started_at = time.monotonic()
        self.num_starts += 1

    def _execute(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", "fedlora_cli.child", str(os.getpid()), self._module],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                # Ctrl-C reaches the command line only, which then stops its children in order.
                process_group=0,
            )

    def _fork(self, server: ForkServer) -> ForkedProcess:
        return server.fork(
            self._module,
            name=self.name,
            environment=self.environment,
            log=self.log,
            folder=Path(),
        )

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    @property
    def is_running(self) -> bool:
        """It has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, signum: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        if self._process and self.is_running:
            self._process.send_signal(signum)

    def wait(self, timeout_seconds: float) -> bool:
        """Waits for its end; False if that did not come."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(0.0, timeout_seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Releases the pipe to a process that has ended."""
        if isinstance(self._process, subprocess.Popen) and self._process.stdin:
            self._process.stdin.close()

    def tail(self, num_lines: int = 15) -> str:
        """The last lines it wrote."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-num_lines:])


def stop_all(groups: Sequence[Sequence[ManagedProcess]], grace_seconds: float) -> None:
    """Ends processes group by group: SIGTERM, time to finish, SIGKILL.

    Args:
        groups: the first one is gone before the second is told.
        grace_seconds: time each group gets.
    """
    for group in groups:
        for process in group:
            process.send(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        for process in group:
            if not process.wait(deadline - time.monotonic()):
                process.send(signal.SIGKILL)
                process.wait(10.0)
            process.close()


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within, SIGINT and SIGTERM are `handler`'s; only in the main thread."""
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def child_environment(environ: Mapping[str, str], *, threads: int) -> dict[str, str]:
    """The environment of a child: ours without FEDLORA_SECTION__KEY, and its share of threads.

    What those variables say is already in the configuration file that the child is given.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not (name.startswith("FEDLORA_") and "__" in name)
    }
    kept |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # Tokenizers warn about forks, and their threads would come on top of ours.
    kept["TOKENIZERS_PARALLELISM"] = "false"
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def metrics_address(first: str, index: int) -> str:
    """Where a worker shows its metrics: at the first one's port, the next, and so on."""
    host, separator, port = first.rpartition(":")
    is_counted = separator and port.isdigit() and int(port) > 0
    return f"{host}:{int(port) + index}" if is_counted else first


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    try:
        return f"ended with code {code} ({ExitCode(code).name.lower().replace('_', ' ')})"
    except ValueError:
        return f"ended with code {code}"
