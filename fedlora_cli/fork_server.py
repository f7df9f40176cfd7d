"""Imports what services need once, and forks itself for each: `fedlora_cli.forked` starts it.

    python -m fedlora_cli.fork_server DESCRIPTOR MODULE...

DESCRIPTOR is a connected socket. A line of JSON asks for a process:

    {"number": 3, "module": "client_worker", "arguments": [], "name": "worker-3",
     "environment": {...}, "log": "/.../worker-3.log", "folder": "/..."}

and is answered by `{"number": 3, "pid": 4711}` and, once it has ended, `{"number": 3, "code": -9}`.
A fork dies with this process, and this process with the one that started it (`fedlora_cli.child`).

The fork server of `multiprocessing` does not serve here: it imports the caller's main program into
every process, prints what libraries say on import to the terminal, is ended by Ctrl-C while it
imports, and outlives a caller that is killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedlora_cli.child import die_with_parent

__all__: list[str] = []

_NAME_BYTES = 15
"""what the kernel keeps of a process's name"""


def main() -> None:
    """Imports, serves, and in a fork becomes the module asked for."""
    descriptor, *modules = sys.argv[1:]
    for module in modules:
        # The service that needs it says so, in its own log.
        with suppress(ImportError):
            importlib.import_module(module)
    # What forks never collect they never write to: its memory stays shared.
    gc.collect()
    gc.freeze()
    wanted = _serve(socket.socket(fileno=int(descriptor)))
    if wanted is not None:
        _become(wanted)


def _serve(asker: socket.socket) -> dict[str, Any] | None:
    """Forks until nobody asks any more; in a fork, what it is to become."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    numbers: dict[int, int] = {}
    with asker, asker.makefile("rwb") as lines, selectors.DefaultSelector() as selector:
        selector.register(asker, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                for pid, code in _ended():
                    # What a library has started as it was imported was not asked for.
                    if pid in numbers:
                        _tell(lines, number=numbers.pop(pid), code=code)
            if asker not in ready:
                continue
            # Whoever asks waits for the answer: there is never a second line behind the first.
            line = lines.readline()
            if not line:
                return None
            wanted: dict[str, Any] = json.loads(line)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                die_with_parent(parent)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(woken)
                os.close(wake)
                return wanted
            numbers[pid] = wanted["number"]
            _tell(lines, number=wanted["number"], pid=pid)


def _ended() -> list[tuple[int, int]]:
    """Process id and exit code of each fork that has ended since it was last asked."""
    found = []
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
    return found


def _tell(lines: Any, **news: int) -> None:
    lines.write(json.dumps(news).encode() + b"\n")
    lines.flush()


def _become(wanted: dict[str, Any]) -> None:
    """All that a shell would have arranged, then the module as the main program."""
    Path("/proc/self/comm").write_bytes(wanted["name"].encode()[:_NAME_BYTES])
    # Ctrl-C reaches the command line only, which then stops its children in order.
    os.setpgid(0, 0)
    os.chdir(wanted["folder"])
    with Path(wanted["log"]).open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv = [wanted["module"], *wanted["arguments"]]
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
