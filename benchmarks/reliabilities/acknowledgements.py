"""From the last byte of an update to its acknowledgement, against what any disk asks for."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reliabilities.history import spec_of
from reliabilities.joined import Joined, join
from shared.server import server

from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.digests import new_digest
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import tensor_pb2
from fedlora.runs.tasks import UpdateHeader
from fedlora.tensors.header import encode_header
from fedlora.tensors.manifest import DataType, TensorManifest
from fedlora.wire.convert import to_message

__all__ = ["acknowledgements"]

_CHUNK = 1024**2
_WIDTH = 16384


def acknowledgements(folder: Path, sizes: Sequence[int], *, repeats: int) -> list[str]:
    """The section of the page."""
    lines = [
        "## Acknowledgement",
        "",
        (
            "Milliseconds, medians. *Chain*: the last chunk made durable under a name and the "
            "name in a database – written, synced, renamed, folder synced, one transaction – as"
            " any server must, on an idle disk. *Commit → answer*: as a worker sees it over the"
            " loopback interface, from its last message, once the server has read all the "
            "bytes. *Last byte → answer*: without that pause, so that it holds what the server "
            "still has to read and check of up to 4 MiB in flight. *Same bytes*: written and "
            "synced with nobody asking."
        ),
        "",
        (
            "| MiB | commit → answer | of a chain | last byte → answer | chain | sync of the last "
            "chunk | same bytes | whole upload |"
        ),
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for mib in sizes:
        # While the disk has nothing else to do: after an upload a chain takes many times as long.
        chains = [_chain(folder) for _ in range(3 * repeats)]
        sync, chain = (statistics.median(parts) for parts in zip(*chains, strict=True))
        uploads = asyncio.run(_uploads(folder / f"upload-{mib}", mib, repeats))
        paused, ack, whole = (statistics.median(parts) for parts in zip(*uploads, strict=True))
        same = statistics.median(_write(folder, mib) for _ in range(3))
        lines.append(
            f"| {mib} | {1e3 * paused:.3g} | {paused / chain:.2f}x | {1e3 * ack:.3g} | "
            f"{1e3 * chain:.3g} | {1e3 * sync:.3g} | {1e3 * same:.3g} | {1e3 * whole:.4g} |"
        )
    return [*lines, ""]


async def _uploads(folder: Path, mib: int, repeats: int) -> list[tuple[float, float, float]]:
    """Seconds from the commit to the answer, from the last byte to it, and of a whole upload."""
    rank = mib * _CHUNK // (8 * _WIDTH)
    layout = AdapterLayout(
        modules=(AdaptedModule(path="wide", in_features=_WIDTH, out_features=_WIDTH),),
        saved_tensors=(),
        base_fingerprint="sha256:base",
    )
    manifest = layout.manifest(rank, DataType.F32)
    # One worker more than upload, so that the round stays open.
    spec = spec_of("upload", num_rounds=1, num_workers=2 * repeats + 1, rank=rank)
    with server(folder, spec) as served:
        names = [f"worker-{i}" for i in range(2 * repeats + 1)]
        workers = [await join(served.address, name, layout) for name in names]
        # Version 0 of the adapter.
        await _upload(workers[0], manifest, 0, pause=False)
        found = []
        for i in range(repeats):
            paused, _ = await _upload(workers[2 * i], manifest, 2 * i + 1, pause=True)
            found.append((paused, *await _upload(workers[2 * i + 1], manifest, 2 * i + 2)))
        for worker in workers:
            await worker.channel.close()
    shutil.rmtree(folder)
    return found


async def _upload(
    worker: Joined, manifest: TensorManifest, content: int, *, pause: bool = False
) -> tuple[float, float]:
    """Seconds from the last byte, or the commit after a pause, to the answer, and of all."""
    request = pb.AwaitTaskRequest(session_token=worker.token, max_wait_seconds=30)
    task = (await worker.stub.AwaitTask(request, timeout=60)).task
    head = encode_header(manifest, {"format": "pt"})
    total = len(head) + manifest.data_bytes
    # Finite numbers, and others in each upload: equal files would be one blob.
    block = bytes([0x20 + content]) * _CHUNK
    key = f"{worker.name}-{task.round}"
    header = UpdateHeader(
        session_token=worker.token,
        run_id=worker.run_id,
        task_id=task.task_id,
        round=task.round,
        base_version=task.adapter_version,
        idempotency_key=key,
        total_bytes=total,
        manifest=manifest,
        num_examples=1,
    )
    last = 0.0

    async def messages() -> AsyncIterator[pb.PushUpdateRequest]:
        nonlocal last
        yield pb.PushUpdateRequest(header=to_message(header, pb.UpdateHeader))
        digest, sent = new_digest(), 0
        while sent < total:
            data = (head + block if sent == 0 else block)[: min(_CHUNK, total - sent)]
            digest.update(data)
            chunk = tensor_pb2.PayloadChunk(offset=sent, data=data)
            sent += len(data)
            last = time.perf_counter()
            yield pb.PushUpdateRequest(chunk=chunk)
        end = tensor_pb2.PayloadCommit(total_bytes=total, digest=digest.digest())
        if pause:
            await _all_read(worker, key, total)
            last = time.perf_counter()
        yield pb.PushUpdateRequest(commit=end)

    began = time.perf_counter()
    await worker.stub.PushUpdate(messages(), timeout=300)
    ended = time.perf_counter()
    return ended - last, ended - began


async def _all_read(worker: Joined, key: str, total: int) -> None:
    request = pb.GetUploadStatusRequest(session_token=worker.token, idempotency_key=key)
    read = 0
    while read < total:
        read = (await worker.stub.GetUploadStatus(request, timeout=30)).durable_bytes


# --- what any disk asks for -----------------------------------------------------------------


def _chain(folder: Path) -> tuple[float, float]:
    """Seconds of the sync alone, and of all of it."""
    path, target = folder / "chunk.part", folder / "chunks" / secrets.token_hex(4)
    target.parent.mkdir(exist_ok=True)
    with _database(folder) as db:
        began = time.perf_counter()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(handle, bytes(_CHUNK))
        written = time.perf_counter()
        os.fsync(handle)
        synced = time.perf_counter()
        os.close(handle)
        path.replace(target)
        parent = os.open(target.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
        db.execute("INSERT INTO rows VALUES (?)", ("x" * 2000,))
        return synced - written, time.perf_counter() - began


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(folder / "chain.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS rows (text TEXT)")
    yield db
    db.close()


def _write(folder: Path, mib: int) -> float:
    path, block = folder / "same", bytes(_CHUNK)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(block)
        os.fsync(file.fileno())
    taken = time.perf_counter() - began
    path.unlink()
    return taken
