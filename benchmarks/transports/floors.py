"""What limits any server on this machine: sockets, streams, the disk, digests, copies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
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
    """CPU seconds a byte, of the process that is measured"""
    worker_cpu: float = 0.0
    """CPU seconds a byte, of those that it serves"""


def flow_of(
    notes: Sequence[dict[str, Any]], way: str, *, server_cpu: float, worker_cpu: float
) -> Flow:
    """From the first worker's first byte to the last one's answer; `way` is push or pull."""
    moved = sum(n["bytes_up" if way == "push" else "bytes_down"] for n in notes)
    began = min(n[f"{way}_began"] for n in notes)
    ended = max(n[f"{way}_ended"] for n in notes)
    return Flow(moved / (ended - began), server_cpu / moved, worker_cpu / moved)


def over_socket(pool: Workers, num_bytes: int, *, count: int) -> Flow:
    """A TCP connection per worker into one process that throws the bytes away."""
    return _floor(pool, "socket", "send_to_socket", "push", num_bytes, count)


def over_stream(pool: Workers, num_bytes: int, way: str, *, count: int) -> Flow:
    """A gRPC stream per worker of raw messages, to or from one grpc.aio server."""
    what = "send_to_stream" if way == "push" else "take_from_stream"
    return _floor(pool, "stream", what, way, num_bytes, count)


def _floor(pool: Workers, kind: str, what: str, way: str, num_bytes: int, count: int) -> Flow:
    with script("floor_server.py", kind) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            before = cpu_seconds(process.pid)
            sent = pool.processes(what, count, address=address, num_bytes=num_bytes)
            cpu = cpu_seconds(process.pid) - before
        finally:
            process.kill()
    return flow_of(sent.of, way, server_cpu=cpu, worker_cpu=sent.cpu_seconds)


def written(folder: Path, num_bytes: int, count: int) -> Flow:
    """`count` files of `num_bytes` written at once, each synced at its end."""
    paths = [folder / f"floor-{i}" for i in range(count)]

    def write(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            for block in _blocks(num_bytes):
                file.write(block)
            os.fsync(file.fileno())

    with ThreadPoolExecutor(count) as threads:
        flow = _local(lambda: list(threads.map(write, paths)), count * num_bytes)
    for path in paths:
        path.unlink()
    return flow


def warm(folder: Path, num_bytes: int) -> None:
    """Has the kernel hold so much page cache, and gives it back.

    A hypervisor takes back memory that its guest does not use. The first touch of a page then costs
    many times what it costs on a machine of its own (measured: 1.7 instead of 0.2 CPU seconds a GB
    written), by chance for one measurement and not for the next.
    """
    written(folder, num_bytes, 1)


def digested(num_bytes: int) -> Flow:
    """The digest of payloads in one thread, block by block."""
    digest = new_digest()
    return _local(lambda: [digest.update(block) for block in _blocks(num_bytes)], num_bytes)


def copied(num_bytes: int) -> Flow:
    """From memory to memory, both of which are there already."""
    source, target = (np.ones(num_bytes, np.uint8) for _ in range(2))
    return _local(lambda: np.copyto(target, source), num_bytes)


def _blocks(num_bytes: int) -> Iterator[memoryview]:
    """A MiB of noise, again and again."""
    block = memoryview(os.urandom(_BLOCK))
    for start in range(0, num_bytes, _BLOCK):
        yield block[: num_bytes - start]


def _local(work: Callable[[], object], num_bytes: int) -> Flow:
    """What this process alone does with some bytes."""
    began, before = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - before
    return Flow(num_bytes / seconds, cpu / num_bytes)
