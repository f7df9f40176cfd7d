"""`python control_calls.py ADDRESS TOKEN SECONDS`: small calls, and how long each was waited for.

A process of its own, so that what else a test does is not in the figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path

import grpc

from client_worker.transport.keep_alive import KeepAlive
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.rpc.channel import client_options

__all__ = ["beside"]

_PAUSE_SECONDS = 0.02
_UPLOADS_A_SECOND = 40
"""more than one server takes"""

_SETTLING_CALLS = 20
"""of a new connection and a new process, not of the server: not in the figures"""


async def beside(
    folder: Path, *, uploads: int, busy: bool, seconds: float
) -> tuple[list[float], list[float]]:
    """Small calls to a server that has large ones to serve.

    Args:
        folder: of the server.
        uploads: that run at every moment, 8 MiB each.
        busy: another run of the server aggregates as well.
        seconds: for how long it is measured.

    Returns:
        seconds of each call, sorted, and seconds in aggregation of each round.
    """
    # Not for the process that only calls: it has no part in this.
    from support.crowd import gathered
    from support.heavy_run import aggregating

    num_senders = 1 + (int(_UPLOADS_A_SECOND * seconds) if uploads else 0)
    rounds: list[float] = []
    async with gathered(folder, num_senders, rank=1024) as crowd, AsyncExitStack() as stack:
        if busy:
            rounds = await stack.enter_async_context(aggregating(crowd.server.address))
        (probe,) = crowd.take(1)

        async def keep_sending() -> None:
            while True:
                (sender,) = crowd.take(1)
                await sender.send()

        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(keep_sending()) for _ in range(uploads)]
            latencies = await _called(crowd.server.address, probe.worker.token, seconds)
            for lane in lanes:
                lane.cancel()
    return latencies, rounds


async def _called(address: str, token: str, seconds: float) -> list[float]:
    """Beats over a stream and polls for a task, by turns; seconds of each, sorted."""
    arguments = (sys.executable, __file__, address, token, str(seconds))
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    latencies: list[float] = json.loads(printed)
    return sorted(latencies)


def _measure(address: str, token: str, seconds: float) -> list[float]:
    latencies: list[float] = []
    # As a worker does: each beat is answered, over one stream that stays open.
    beats = KeepAlive(address)
    with grpc.insecure_channel(address, options=client_options()) as channel, closing(beats):
        stub = federation_pb2_grpc.FederationServiceStub(channel)
        beat = pb.HeartbeatRequest(session_token=token)
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            if len(latencies) % 2:
                stub.AwaitTask(pb.AwaitTaskRequest(session_token=token), timeout=60)
            else:
                beats.beat(stub.KeepAlive, beat, seconds=60)
            latencies.append(time.perf_counter() - began)
            time.sleep(_PAUSE_SECONDS)
    return latencies[_SETTLING_CALLS:]


if __name__ == "__main__":
    json.dump(_measure(sys.argv[1], sys.argv[2], float(sys.argv[3])), sys.stdout)
