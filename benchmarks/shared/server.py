"""A real server process with a run that has been started, for any benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.processes import cpu_seconds

from fedlora.runs.spec import RunSpec
from fedlora_cli.admin_client import AdminClient

__all__ = ["Server", "server"]


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves."""

    address: str
    pid: int
    state_dir: Path

    def cpu_seconds(self) -> float:
        """CPU time that it has taken, in all threads."""
        return cpu_seconds(self.pid)


@contextmanager
def server(folder: Path, spec: RunSpec) -> Iterator[Server]:
    """`python -m aggregator_service` on a free port, with a run that has been started.

    Workers are not missed: a measurement may leave them silent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "address"
    port_file.unlink(missing_ok=True)
    settings = {
        "ADDRESS": "127.0.0.1:0",
        "STATE_DIR": folder / "state",
        "EXPORT_DIR": folder / "runs",
        "PORT_FILE": port_file,
        "DEVICE": "cpu",
        "WORKER_TIMEOUT_SECONDS": 3600,
    }
    environment = {**os.environ, **{f"FEDLORA_SERVER__{k}": str(v) for k, v in settings.items()}}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "aggregator_service"], env=environment, stdout=log, stderr=log
        )
    try:
        while not port_file.exists():
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.01)
        address = port_file.read_text()
        with AdminClient(address) as client:
            client.create_run(spec, start=True)
        yield Server(address, process.pid, folder / "state")
    finally:
        # Its state is thrown away: nobody waits for what it still computes.
        process.kill()
        process.wait()
