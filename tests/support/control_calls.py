"""`python control_calls.py ADDRESS TOKEN SECONDS`: small calls, and how long each was waited for.

A process of its own, so that what else a test does is not in the figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc

from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc

__all__ = ["control_calls"]

_PAUSE_SECONDS = 0.02
_SETTLING_CALLS = 20
"""of a new connection and a new process, not of the server: not in the figures"""


async def control_calls(address: str, token: str, seconds: float) -> list[float]:
    """Heartbeats and polls for a task, one after the other; seconds of each, sorted."""
    arguments = (sys.executable, __file__, address, token, str(seconds))
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    latencies: list[float] = json.loads(printed)
    return sorted(latencies)


def _measure(address: str, token: str, seconds: float) -> list[float]:
    latencies: list[float] = []
    with grpc.insecure_channel(address) as channel:
        stub = federation_pb2_grpc.FederationServiceStub(channel)
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            if len(latencies) % 2:
                stub.AwaitTask(pb.AwaitTaskRequest(session_token=token), timeout=60)
            else:
                stub.Heartbeat(pb.HeartbeatRequest(session_token=token), timeout=60)
            latencies.append(time.perf_counter() - began)
            time.sleep(_PAUSE_SECONDS)
    return latencies[_SETTLING_CALLS:]


if __name__ == "__main__":
    json.dump(_measure(sys.argv[1], sys.argv[2], float(sys.argv[3])), sys.stdout)
