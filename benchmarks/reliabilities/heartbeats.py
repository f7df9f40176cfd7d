"""A thousand workers that prove life: what it costs the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from reliabilities.history import layout_of, spec_of
from reliabilities.joined import Joined, join
from shared.processes import private_bytes
from shared.server import Server, server

from fedlora.proto.v1 import federation_pb2 as pb

__all__ = ["heartbeats"]

_INTERVAL_SECONDS = 15.0
_TURNS = 5


def heartbeats(folder: Path, *, num_workers: int, seconds: float) -> list[str]:
    """The section of the page."""
    found = asyncio.run(_measure(folder, num_workers, seconds))
    return [
        "## Heartbeats",
        "",
        (
            f"{num_workers:,} registered workers, each with a connection of its own and a beat "
            f"every {_INTERVAL_SECONDS:g} s. Share of one core that the server process takes, "
            f"{found.idle:.1%} without any. *Stream*: KeepAlive, as `fedlora worker` beats while "
            "it has nothing to do, where every other beat asks for no answer; each takes "
            f"{found.stream_bytes / 1024:.0f} KiB of the server's memory while it is open. "
            "*Stream, all answered*: as it beats over a task. *Call*: Heartbeat, a call for each "
            "beat. *Health check*: the same calls to the handler that comes with gRPC and does "
            "nothing, the least that a call in Python costs. "
            f"The median of {_TURNS} turns of each, taken in turn."
        ),
        "",
        "| beat | beats a second | of a core | µs a beat | answer, ms | 99th percentile |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {load.rate:.1f} | {load.share:.1%} | {1e6 * load.share / load.rate:.0f} | "
            f"{1e3 * load.latencies[len(load.latencies) // 2]:.2g} | "
            f"{1e3 * load.latencies[int(0.99 * len(load.latencies))]:.2g} |"
            for name, load in found.loads.items()
        ),
        "",
    ]


@dataclass(frozen=True, slots=True)
class _Load:
    """What some seconds of beats took."""

    share: float
    """of one core"""
    rate: float
    """beats a second"""
    latencies: list[float]
    """of those that were answered; sorted"""


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured."""

    idle: float
    """share of a core without any beat"""
    loads: Mapping[str, _Load]
    """by the way of beating"""
    stream_bytes: float
    """private memory of the server that an open stream takes"""


async def _measure(folder: Path, num_workers: int, seconds: float) -> _Found:
    spec = spec_of("heartbeats", num_rounds=1, num_workers=num_workers + 1)
    with server(folder, spec) as served:
        layout = layout_of(1)
        workers = [await join(served.address, f"worker-{i}", layout) for i in range(num_workers)]
        began, before = time.perf_counter(), served.cpu_seconds()
        await asyncio.sleep(seconds / 4)
        idle = (served.cpu_seconds() - before) / (time.perf_counter() - began)
        private = private_bytes(served.pid)
        streams = [_Beats(worker) for worker in workers]
        for stream in streams:
            await stream.beat()
        stream_bytes = (private_bytes(served.pid) - private) / num_workers
        stubs = [health_pb2_grpc.HealthStub(w.channel) for w in workers]
        ways: Mapping[str, list[Callable[[], Awaitable[object]]]] = {
            "stream": [stream.every_other_answered for stream in streams],
            "stream, all answered": [stream.beat for stream in streams],
            "call": [lambda w=w: w.stub.Heartbeat(_request(w)) for w in workers],
            "health check": [lambda s=s: s.Check(health_pb2.HealthCheckRequest()) for s in stubs],
        }
        turns = [
            {name: await _load(served, seconds, way) for name, way in ways.items()}
            for _ in range(_TURNS)
        ]
        for worker in workers:
            await worker.channel.close()
    loads = {name: _median([turn[name] for turn in turns]) for name in ways}
    return _Found(idle, loads, stream_bytes)


def _median(loads: list[_Load]) -> _Load:
    """The one in the middle by its cost: a neighbour that takes the machine now and then is out."""
    return sorted(loads, key=lambda load: load.share / load.rate)[len(loads) // 2]


def _request(worker: Joined) -> pb.HeartbeatRequest:
    return pb.HeartbeatRequest(session_token=worker.token)


class _Beats:
    """Beats over one stream."""

    def __init__(self, worker: Joined) -> None:
        self._stream: Any = worker.stub.KeepAlive()
        self._request = _request(worker)
        self._unanswered = _request(worker)
        self._unanswered.unanswered = True
        self._number = 0

    async def beat(self) -> bool:
        """One that is answered; True."""
        await self._stream.write(self._request)
        answer = await self._stream.read()
        if not isinstance(answer, pb.HeartbeatResponse):
            raise TypeError(f"an answer was expected, got {await self._stream.code()}")
        return True

    async def every_other_answered(self) -> bool:
        """One of an idle worker's; whether it was answered."""
        self._number += 1
        if self._number % 2:
            return await self.beat()
        await self._stream.write(self._unanswered)
        return False


async def _load(
    served: Server, seconds: float, calls: Sequence[Callable[[], Awaitable[object]]]
) -> _Load:
    latencies: list[float] = []
    num_beats = 0

    async def repeat(call: Callable[[], Awaitable[object]], first: float, until: float) -> None:
        nonlocal num_beats
        due = first
        while due < until:
            await asyncio.sleep(due - time.perf_counter())
            sent = time.perf_counter()
            if await call():
                latencies.append(time.perf_counter() - sent)
            num_beats += 1
            due += _INTERVAL_SECONDS
        await asyncio.sleep(max(0.0, until - time.perf_counter()))

    began, before = time.perf_counter(), served.cpu_seconds()
    starts = [began + i * _INTERVAL_SECONDS / len(calls) for i in range(len(calls))]
    pairs = zip(calls, starts, strict=True)
    await asyncio.gather(*(repeat(c, start, began + seconds) for c, start in pairs))
    elapsed = time.perf_counter() - began
    share = (served.cpu_seconds() - before) / elapsed
    return _Load(share, num_beats / elapsed, sorted(latencies))
