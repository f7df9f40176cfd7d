"""Uploads into durable storage and downloads, against bare transports in the same minute."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from transports.adapters import Adapter, run_of
from transports.federation import federation
from transports.floors import (
    Flow,
    copied,
    digested,
    flow_of,
    over_socket,
    over_stream,
    warm,
    written,
)
from transports.workers import Workers

from client_worker.transport.client import FederationClient
from fedlora.digests import DIGEST_NAME
from fedlora.runs.tasks import Capabilities

__all__ = ["throughput"]


_UPLOAD, _DOWNLOAD = "**upload**", "**download**"
_STREAM, _STREAM_DOWN, _SOCKET = "bare stream", "bare stream, down", "bare socket"


def throughput(
    folder: Path, pool: Workers, adapters: Sequence[Adapter], *, count: int, repeats: int
) -> list[str]:
    """The section of the page."""
    lines = [
        "## Bytes per second",
        "",
        (
            f"{count} workers at once, all the same way; GB/s from the first worker's first byte to"
            f" the last one's answer, medians of {repeats}, the rows of a size taken by turns. "
            "*Upload*: every byte checked, hashed, written, synced and committed before the "
            "answer, while the round stays open. *Bare stream*: the same number of workers and of "
            "bytes, raw messages of 1 MiB into a grpc.aio server that throws them away; *down*: "
            "out of one. *Bare socket*: into a process that does nothing but read. *Written*: as "
            "many files written and synced at once, with nobody asking. CPU in seconds per GB; a "
            "worker's with the making of its payload."
        ),
        "",
        "| MB a worker | what | GB/s | of a bare stream | of a socket | server CPU | worker CPU |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for adapter in adapters:
        lines += _rows(folder, pool, adapter, count=count, repeats=repeats)
    return [*lines, ""]


def _rows(folder: Path, pool: Workers, adapter: Adapter, *, count: int, repeats: int) -> list[str]:
    size = adapter.num_bytes
    turns: dict[str, list[Flow]] = {}
    for repeat in range(repeats):
        up, down = _transfers(folder / f"flow-{repeat}", pool, adapter, count)
        for name, flow in (
            (_UPLOAD, up),
            (_STREAM, over_stream(pool, size, "push", count=count)),
            (_SOCKET, over_socket(pool, size, count=count)),
            (_DOWNLOAD, down),
            (_STREAM_DOWN, over_stream(pool, size, "pull", count=count)),
            ("written and synced", written(folder, size, count)),
            (f"{DIGEST_NAME}, one thread", digested(count * size)),
            ("copy in memory", copied(count * size)),
        ):
            turns.setdefault(name, []).append(flow)
    medians = {name: _median(flows) for name, flows in turns.items()}
    lines = []
    for name, flow in medians.items():
        stream = medians[_STREAM_DOWN if name in (_DOWNLOAD, _STREAM_DOWN) else _STREAM]
        worker = f"{1e9 * flow.worker_cpu:.2f}" if flow.worker_cpu else "–"
        lines.append(
            f"| {size / 1e6:.3g} | {name} | {flow.bytes_per_second / 1e9:.2f} | "
            f"{flow.bytes_per_second / stream.bytes_per_second:.2f}x | "
            f"{flow.bytes_per_second / medians[_SOCKET].bytes_per_second:.2f}x | "
            f"{1e9 * flow.server_cpu:.2f} | {worker} |"
        )
        print(lines[-1], flush=True)
    return lines


def _transfers(folder: Path, pool: Workers, adapter: Adapter, count: int) -> tuple[Flow, Flow]:
    """All workers' uploads of one round, and the downloads before."""
    # One worker more, which sends nothing: the round stays open, and only bytes are moved.
    spec = run_of(adapter, workers=count + 1, rounds=1)
    with federation(folder, pool, adapter, spec, count) as served:
        with FederationClient(served.address) as silent:
            session = silent.register(
                worker_name="worker-silent",
                run_name="",
                instance_id="1",
                capabilities=Capabilities(),
            )
            silent.confirm_adapter(session.session_token, adapter.layout)
            pool.all("ready")
            warm(served.state_dir, 2 * count * adapter.num_bytes)
            before = served.cpu_seconds()
            pulled = pool.all("pull")
            between = served.cpu_seconds()
            made = pool.all("encode").cpu_seconds
            warm(served.state_dir, count * adapter.num_bytes)
            begun = served.cpu_seconds()
            pushed = pool.all("push")
            ended = served.cpu_seconds()
        pool.all("end")
    up = flow_of(pushed.of, "push", server_cpu=ended - begun, worker_cpu=pushed.cpu_seconds + made)
    down = flow_of(pulled.of, "pull", server_cpu=between - before, worker_cpu=pulled.cpu_seconds)
    return up, down


def _median(flows: Sequence[Flow]) -> Flow:
    return Flow(
        *(
            statistics.median(getattr(flow, name) for flow in flows)
            for name in ("bytes_per_second", "server_cpu", "worker_cpu")
        )
    )
