"""`python large_upload_process.py ADDRESS RANK WIDTH`: a worker's client sends one large update.

A process of its own, because what it holds besides its tensors is what is measured: private memory
when the payload stands ready, and the most of it until the server has acknowledged.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Self

import torch

from client_worker.transport.client import FederationClient
from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.runs.tasks import Capabilities, Registration, UpdateHeader
from fedlora.tensors.manifest import DataType
from fedlora.tensors.safetensors_io import encode

_LOOK_SECONDS = 0.005
_READY = "ready\n"


def upload_in_a_process(address: str, *, rank: int, width: int) -> subprocess.Popen[str]:
    """Starts it and returns when its payload stands ready.

    It goes on when its input ends; its output is then an object with `total_bytes`, `base` and
    `peak`, all in bytes.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, address, str(rank), str(width)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == _READY
    return process


def rss_anon_bytes(process: int | str) -> int:
    """Private memory of a process, `self` for this one: neither page cache nor mapped files."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class PeakMemory:
    """The most private memory of a process while the context is open."""

    def __init__(self, process: int | str) -> None:
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.base_bytes = self.peak_bytes = rss_anon_bytes(process)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.peak_bytes = max(self.peak_bytes, rss_anon_bytes(self._process))


def _join(client: FederationClient, name: str, layout: AdapterLayout) -> Registration:
    session = client.register(
        worker_name=name, run_name="", instance_id="1", capabilities=Capabilities()
    )
    client.confirm_adapter(session.session_token, layout)
    return session


def main(address: str, rank: int, width: int) -> None:
    layout = AdapterLayout(
        modules=(AdaptedModule(path="wide", in_features=width, out_features=width),),
        saved_tensors=(),
        base_fingerprint="sha256:base",
    )
    manifest = layout.manifest(rank, DataType.F32)
    with closing(FederationClient(address)) as client:
        session = _join(client, "w-0", layout)
        _join(client, "w-1", layout)
        task = client.await_task(session.session_token, max_wait_seconds=30)
        payload = encode({t.name: torch.full(t.shape, 0.5) for t in manifest.tensors})
        header = UpdateHeader(
            session_token=session.session_token,
            run_id=session.run_id,
            task_id=task.task_id,
            round=task.round,
            base_version=task.adapter_version,
            idempotency_key="large",
            total_bytes=payload.total_bytes,
            manifest=payload.manifest,
            num_examples=1,
        )
        sys.stdout.write(_READY)
        sys.stdout.flush()
        sys.stdin.read()
        with PeakMemory("self") as memory:
            chunk = session.limits.max_chunk_bytes
            answer = client.push_update(header, payload, max_chunk_bytes=chunk)
    found = {
        "total_bytes": answer.total_bytes,
        "base": memory.base_bytes,
        "peak": memory.peak_bytes,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
