"""What limits any server on this machine: sockets, streams, the disk, digests, copies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared.processes import cpu_seconds
from transports.workers import Workers, script

from fedlora.digests import new_digest

__all__ = ["Flow", "copied", "digested", "flow_of", "over_socket", "over_stream", "warm", "written"]

_BLOCK = 1024**2


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that went one way."""

    bytes_per_second: float
    server_cpu: float
    """CPU seconds a byte"""
    worker_cpu: float
    """CPU seconds a byte"""


def flow_of(
    notes: Sequence[dict[str, Any]], way: str, *, server_cpu: float, worker_cpu: float
) -> Flow:
    """From the first worker's first byte to the last one's answer; `way` is push or pull."""
    moved = sum(n["bytes_up" if way == "push" else "bytes_down"] for n in notes)
    began = min(n[f"{way}_began"] for n in notes)
    ended = max(n[f"{way}_ended"] for n in notes)
    return Flow(moved / (ended - began), server_cpu / moved, worker_cpu / moved)


def over_socket(pool: Workers, num_bytes: int) -> Flow:
    """A TCP connection per worker into one process that throws the bytes away."""
    return _floor(pool, "socket", "send_to_socket", "push", num_bytes)


def over_stream(pool: Workers, num_bytes: int, way: str) -> Flow:
    """A gRPC stream per worker of raw messages, to or from one grpc.aio server."""
    what = "send_to_stream" if way == "push" else "take_from_stream"
    return _floor(pool, "stream", what, way, num_bytes)


def _floor(pool: Workers, kind: str, what: str, way: str, num_bytes: int) -> Flow:
    process = script("floor_server.py", kind)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        before = cpu_seconds(process.pid)
        sent = pool.all(what, address=address, num_bytes=num_bytes)
        cpu = cpu_seconds(process.pid) - before
    finally:
        process.kill()
        process.wait()
    return flow_of(sent.of, way, server_cpu=cpu, worker_cpu=sent.cpu_seconds)


def written(folder: Path, num_bytes: int, count: int) -> float:
    """Bytes a second into `count` files at once, each synced at its end."""
    block = os.urandom(_BLOCK)
    paths = [folder / f"floor-{i}" for i in range(count)]

    def write(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(num_bytes // _BLOCK):
                file.write(block)
            os.fsync(file.fileno())

    with ThreadPoolExecutor(count) as threads:
        seconds = _seconds(lambda: list(threads.map(write, paths)))
    for path in paths:
        path.unlink()
    return count * (num_bytes // _BLOCK) * _BLOCK / seconds


def warm(folder: Path, num_bytes: int) -> None:
    """Has the kernel hold so much page cache, and gives it back.

    A hypervisor takes back memory that its guest does not use. The first touch of a page then costs
    many times what it costs on a machine of its own (measured: 1.7 instead of 0.2 CPU seconds a GB
    written), by chance for one measurement and not for the next.
    """
    written(folder, num_bytes, 1)


def digested(num_bytes: int) -> float:
    """Bytes a second through the digest of payloads in one thread, block by block."""
    block, digest = bytes(_BLOCK), new_digest()
    count = num_bytes // _BLOCK
    return count * _BLOCK / _seconds(lambda: [digest.update(block) for _ in range(count)])


def copied(num_bytes: int) -> float:
    """Bytes a second from memory to memory that is there already."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    return num_bytes / min(_seconds(lambda: np.copyto(target, source)) for _ in range(5))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
