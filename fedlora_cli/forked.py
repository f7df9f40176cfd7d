"""Services as forks of a process that has imported their libraries.

torch, transformers and peft take seconds of a core to import and hundreds of MB, in every process
anew. A fork of a process that has done so is up in a tenth of a second and shares that memory. Its
environment, output and process group are its own, as if it had been executed.

For services on a CPU, on Linux: CUDA does not survive a fork, and a library may start it by merely
counting devices, so the process that imports them is shown none. Elsewhere services are executed
(`fedlora_cli.processes`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedlora.devices.base import VISIBLE
from fedlora.errors import FedLoraError, Reason

__all__ = ["TRAINING_LIBRARIES", "ForkServer", "ForkedProcess", "can_fork"]

TRAINING_LIBRARIES = ("torch", "transformers", "peft", "client_worker.training.trainer")
"""what a process has imported by the time it trains"""


def can_fork() -> bool:
    """Whether processes of this platform may be forked once they have loaded the libraries."""
    return sys.platform == "linux"


class ForkServer:
    """Starts services as forks of a process that it has; thread-safe.

    That process begins to import at once; the first fork waits for it. Where it is killed, its
    forks are killed with it, and the next fork starts it again. It dies with the thread that made
    it (`fedlora_cli.child`).

    Args:
        modules: what the services have in common, imported in this order. None of them may read
            the environment as it is imported. What cannot be imported is left to the service.
        environment: of the imports, such as how many threads libraries take.
        log: file that what they print is added to.
    """

    def __init__(
        self, modules: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self._modules = tuple(modules)
        self._environment = {**environment, VISIBLE: ""}
        self._log = log
        self._forking = threading.Lock()
        self._changed = threading.Condition()
        self._num_asked = 0
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._start()

    @property
    def pid(self) -> int:
        """Of the process that imports."""
        return self._process.pid

    def fork(
        self,
        module: str,
        *arguments: str,
        name: str,
        environment: Mapping[str, str],
        log: Path,
        folder: Path,
    ) -> ForkedProcess:
        """Starts `python -m MODULE ARGUMENT...`.

        Args:
            module: what is run as the main program.
            arguments: of that program.
            name: what `top` and `pgrep` show of it, as far as 15 bytes go.
            environment: its whole environment.
            log: file its output is added to.
            folder: its working directory.

        Raises:
            FedLoraError: INTERNAL if a process dies of importing the modules.
        """
        wanted = {
            "module": module,
            "arguments": arguments,
            "name": name,
            "environment": dict(environment),
            "log": str(log.absolute()),
            "folder": str(folder.absolute()),
        }
        with self._forking:
            # Once more for one that was killed while nobody needed it.
            found = self._ask(wanted) or self._ask(wanted)
        if found is None:
            raise FedLoraError(
                Reason.INTERNAL,
                f"a process that imports {', '.join(self._modules)} dies of it",
                hint=f"What it said is in {self._log}",
            )
        return found

    def _ask(self, wanted: Mapping[str, object]) -> ForkedProcess | None:
        """A fork; None if there is nobody to answer any more."""
        if self._is_gone:
            self.close()
            self._start()
        with self._changed:
            number = self._num_asked = self._num_asked + 1
        # One that has died since then is noticed by the thread that listens.
        with suppress(OSError):
            self._socket.sendall(json.dumps({"number": number, **wanted}).encode() + b"\n")
        with self._changed:
            self._changed.wait_for(lambda: number in self._pids or self._is_gone)
            pid = self._pids.get(number)
        return None if pid is None else ForkedProcess(self, number, pid)

    def code(self, number: int, timeout: float | None = 0.0) -> int | None:
        """Exit code of the fork with that number; None if it has not ended in time."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._codes, timeout)
            return self._codes.get(number)

    def close(self) -> None:
        """Ends it, and every fork that is left."""
        self._process.kill()
        self._process.wait()
        self._listener.join()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log.open("ab") as log:
            command = [sys.executable, "-m", "fedlora_cli.child", str(os.getpid())]
            command.append("fedlora_cli.fork_server")
            self._process = subprocess.Popen(  # noqa: S603 - our own modules
                [*command, str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        self._is_gone = False
        self._socket = ours
        self._listener = threading.Thread(target=self._listen, args=(ours,), daemon=True)
        self._listener.start()

    def _listen(self, server: socket.socket) -> None:
        """Takes down what one process of the server says, until it ends."""
        with server, server.makefile("rb") as lines, suppress(ConnectionError):
            for line in lines:
                news = json.loads(line)
                with self._changed:
                    kept = self._pids if "pid" in news else self._codes
                    kept[news["number"]] = news.get("pid", news.get("code"))
                    self._changed.notify_all()
        with self._changed:
            self._is_gone = True
            # The kernel kills what it has forked.
            self._codes = dict.fromkeys(self._pids, -int(signal.SIGKILL)) | self._codes
            self._changed.notify_all()


class ForkedProcess:
    """A fork, with the methods of `subprocess.Popen` that we need.

    Args:
        server: what it is a fork of.
        number: which one.
        pid: process id.
    """

    def __init__(self, server: ForkServer, number: int, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._number = number

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._server.code(self._number)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; subprocess.TimeoutExpired if that does not come."""
        code = self._server.code(self._number, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, signum: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)
