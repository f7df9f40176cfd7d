"""Heartbeats over a connection that stands and carries nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from support.federation import serving
from support.runs import run_spec
from support.tcp_proxy import FaultProxy

from client_worker.transport.keep_alive import KeepAlive
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.rpc.channel import client_options

SILENCE_SECONDS = 0.5


async def test_a_server_that_falls_silent_is_noticed_and_found_again(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served, FaultProxy(served.address) as proxy:
        worker = await served.worker("w-0")
        beat, beats = pb.HeartbeatRequest(session_token=worker.token), KeepAlive(proxy.address)
        with grpc.insecure_channel(proxy.address, options=client_options()) as channel:
            stub = federation_pb2_grpc.FederationServiceStub(channel)

            async def answer(seconds: float) -> Reason | int:
                try:
                    response = await asyncio.to_thread(
                        beats.beat, stub.KeepAlive, beat, seconds=seconds
                    )
                except FedLoraError as error:
                    return error.reason
                return response.directive

            assert await answer(60) == pb.DIRECTIVE_CONTINUE
            proxy.link.hold()
            assert await answer(SILENCE_SECONDS) is Reason.DEADLINE_EXCEEDED
            assert await answer(SILENCE_SECONDS) is Reason.DEADLINE_EXCEEDED
            proxy.heal()
            assert await answer(60) == pb.DIRECTIVE_CONTINUE
            await asyncio.to_thread(beats.close)
