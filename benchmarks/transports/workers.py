"""A number of worker processes that stay for a whole benchmark, and are asked all at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transports.adapters import Adapter

__all__ = ["Answer", "Workers", "script", "workers"]

_BENCHMARKS = Path(__file__).parent.parent


def script(name: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A program of this folder in a process of its own, which finds what this one finds."""
    path = os.pathsep.join(filter(None, [str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, str(_BENCHMARKS / "transports" / name), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What all workers did of one command."""

    cpu_seconds: float
    """of all worker processes together"""
    of: list[Any]
    """one entry per worker"""


class Workers:
    """The processes.

    Args:
        processes: children with pipes; workers are dealt out over them.
        folder: where they keep what they download.
    """

    def __init__(self, processes: list[subprocess.Popen[str]], folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self._used = processes
        for process in processes:
            _line(process)

    @property
    def num_processes(self) -> int:
        """How many there are."""
        return len(self._processes)

    def join(self, address: str, adapter: Adapter, count: int) -> None:
        """`count` workers register; no more processes than workers take part from here on."""
        names = [f"worker-{i}" for i in range(count)]
        self._used = self._processes[:count]
        commands = [
            {
                "do": "join",
                "names": names[i :: len(self._used)],
                "address": address,
                "adapter": adapter.fields(),
                "folder": str(self._folder),
            }
            for i in range(len(self._used))
        ]
        _ask(self._used, commands)

    def all(self, what: str) -> Answer:
        """All workers do something, at the same time; returns when all are done."""
        return _ask(self._used, [{"do": what}] * len(self._used))

    def processes(self, what: str, count: int, **arguments: Any) -> Answer:
        """`count` processes, as processes, do something at the same time."""
        return _ask(self._processes[:count], [{"do": what, **arguments}] * count)


def _ask(processes: list[subprocess.Popen[str]], commands: list[dict[str, Any]]) -> Answer:
    for process, command in zip(processes, commands, strict=True):
        assert process.stdin is not None
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
    answers = [json.loads(_line(process)) for process in processes]
    of = [entry for answer in answers for entry in answer["of"]]
    return Answer(sum(answer["seconds"] for answer in answers), of)


@contextmanager
def workers(folder: Path, *, processes: int) -> Iterator[Workers]:
    """Worker processes, ended on leaving."""
    with (folder / "workers.log").open("ab") as log:
        options = {"stdin": subprocess.PIPE, "stderr": log}
        started = [script("worker.py", **options) for _ in range(processes)]
    try:
        yield Workers(started, folder / "downloads")
    finally:
        for process in started:
            # Also closes its pipes, and waits.
            with process:
                process.kill()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker process has ended with {process.wait()}; see workers.log")
    return line
