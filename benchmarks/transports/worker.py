"""A process of workers that move adapters and train nothing, told what to do line by line.

    python worker.py

A command is a line of JSON on standard input, its result one on standard output: an object with
`seconds` of CPU time that the process took, and `of`, what each of its workers did. Each worker has
a thread and a connection of its own, and calls the server as `fedlora worker` does, with the same
client and the same patience.
"""

from __future__ import annotations

import json
import operator
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from transports.adapters import Adapter
from transports.floor_clients import send_to_socket, send_to_stream, take_from_stream
from transports.noted_client import NotedClient

from client_worker.patience import Patience
from client_worker.runner import POLL_SECONDS
from fedlora.runs.tasks import Capabilities, Task, TaskKind, UpdateHeader
from fedlora.telemetry import configure_logging
from fedlora.tensors.manifest import DataType
from fedlora.tensors.safetensors_io import Payload, decode_mapped, encode

_PATIENCE_SECONDS = 300.0

_JOINING = 4
"""workers of this process that register at a time; a thousand do not come in the same instant"""

FLOORS = {f.__name__: f for f in (send_to_socket, send_to_stream, take_from_stream)}

T = TypeVar("T")
R = TypeVar("R")
Tensors: TypeAlias = dict[str, torch.Tensor]
Note: TypeAlias = dict[str, float]


class Worker:
    """One worker.

    Args:
        name: stable name.
        address: of the server.
        adapter: what it declares.
        folder: for downloads.
        drawn: values of all updates that are not made from a download.
    """

    def __init__(
        self, name: str, address: str, adapter: Adapter, folder: Path, drawn: Tensors
    ) -> None:
        self._folder, self._drawn = folder, drawn
        self._expected_bytes = adapter.num_bytes
        self._client = client = NotedClient(address)
        self._insist = Patience(limit_seconds=_PATIENCE_SECONDS).insist
        self._session = self._insist(
            "registering",
            lambda: client.register(
                worker_name=name, run_name="", instance_id="1", capabilities=Capabilities()
            ),
        )
        token = self._session.session_token
        self._insist("confirming", lambda: client.confirm_adapter(token, adapter.layout))
        self._task = Task(task_id="", kind=TaskKind.WAIT)
        self._payload: Payload | None = None

    def ready(self) -> Note:
        """Waits for a round; sends version 0 if it is the one that is asked to."""
        while self._next().kind is not TaskKind.TRAIN:
            if self._task.kind is TaskKind.INITIALIZE:
                self.encode()
                self.push()
        return {"at": time.perf_counter()}

    def encode(self, pulled: Tensors | None = None) -> Note:
        """Makes an update: what was pulled and a little more, or the values drawn at the start.

        No two updates are equal: equal ones would be one file.
        """
        shift = zlib.crc32(self._task.task_id.encode()) / 2**32
        if pulled is None:
            first = next(iter(self._drawn))
            tensors = {**self._drawn, first: self._drawn[first] + shift}
        else:
            tensors = {name: tensor + shift for name, tensor in pulled.items()}
        self._payload = encode(tensors)
        return {}

    def push(self) -> Note:
        """Sends the update that was encoded."""
        payload, task = self._payload, self._task
        assert payload is not None, "an update is encoded before it is pushed"
        header = UpdateHeader(
            session_token=self._session.session_token,
            run_id=self._session.run_id,
            task_id=task.task_id,
            round=task.round,
            base_version=task.adapter_version,
            idempotency_key=task.task_id,
            total_bytes=payload.total_bytes,
            manifest=payload.manifest,
            num_examples=1,
        )
        chunk = self._session.limits.max_chunk_bytes
        began = time.perf_counter()
        self._insist(
            "pushing", lambda: self._client.push_update(header, payload, max_chunk_bytes=chunk)
        )
        ended = time.perf_counter()
        return {
            "push_began": began,
            "last_byte": self._client.last_byte_sent,
            "push_ended": ended,
            "bytes_up": payload.total_bytes,
        }

    def pull(self) -> Note:
        """Fetches the adapter that the round begins from."""
        return self._pull()[0]

    def run(self) -> list[Note]:
        """Takes part in rounds until the run has ended."""
        done = []
        while self._next().kind is not TaskKind.STOP:
            if self._task.kind is TaskKind.INITIALIZE:
                self.encode()
                self.push()
            elif self._task.kind is TaskKind.TRAIN:
                note, pulled = self._pull()
                self.encode(pulled)
                done.append({"round": self._task.round, **note, **self.push()})
        return done

    def end(self) -> Note:
        """Hangs up, since its server is about to end, and throws its downloads away."""
        self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return {}

    def _next(self) -> Task:
        token = self._session.session_token
        self._task = self._insist(
            "waiting", lambda: self._client.await_task(token, max_wait_seconds=POLL_SECONDS)
        )
        return self._task

    def _pull(self) -> tuple[Note, Tensors]:
        began = time.perf_counter()
        header, path = self._insist(
            "pulling",
            lambda: self._client.pull_adapter(
                self._session.session_token,
                self._task.adapter_version,
                folder=self._folder,
                expected_bytes=self._expected_bytes,
            ),
        )
        note = {
            "pull_began": began,
            "first_byte": self._client.first_byte_received,
            "pull_ended": time.perf_counter(),
            "bytes_down": header.total_bytes,
        }
        return note, decode_mapped(path, header.manifest)


def drawn(adapter: Adapter) -> Tensors:
    """Values like those of a trained adapter."""
    generator = torch.Generator().manual_seed(adapter.layers)
    manifest = adapter.layout.manifest(adapter.rank, DataType.F32)
    return {t.name: torch.randn(t.shape, generator=generator) / 64 for t in manifest.tensors}


def joined(names: list[str], address: str, adapter: dict[str, int], folder: str) -> list[Worker]:
    """New workers, all registered."""
    size = Adapter(**adapter)
    values = drawn(size)

    def one(name: str) -> Worker:
        return Worker(name, address, size, Path(folder) / name, values)

    return in_threads(names, one, count=_JOINING)


def in_threads(items: Sequence[T], work: Callable[[T], R], *, count: int) -> list[R]:
    """The same for each, for `count` of them at a time."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, items))


def main() -> None:
    configure_logging()
    print("{}", flush=True)
    workers: list[Worker] = []
    for line in sys.stdin:
        command = json.loads(line)
        before, what = time.process_time(), command.pop("do")
        done: list[object] = []
        if what == "join":
            workers = joined(**command)
        elif what in FLOORS:
            done = [FLOORS[what](**command)]
        else:
            done = in_threads(workers, operator.methodcaller(what), count=len(workers))
        print(json.dumps({"seconds": time.process_time() - before, "of": done}), flush=True)


if __name__ == "__main__":
    main()
