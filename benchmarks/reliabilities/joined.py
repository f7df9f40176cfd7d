"""Workers that say what a measurement needs of them, over the asyncio stubs."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from fedlora.adapters.spec import AdapterLayout
from fedlora.proto.v1 import adapter_pb2, federation_pb2, federation_pb2_grpc
from fedlora.rpc.channel import client_options
from fedlora.runs.tasks import Capabilities
from fedlora.wire.convert import to_message

__all__ = ["Joined", "join"]


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker that is ready."""

    name: str
    channel: grpc.aio.Channel
    stub: federation_pb2_grpc.FederationServiceStub
    token: str
    run_id: str


async def join(address: str, name: str, layout: AdapterLayout) -> Joined:
    """A worker with a connection of its own."""
    channel = grpc.aio.insecure_channel(address, options=client_options())
    stub = federation_pb2_grpc.FederationServiceStub(channel)
    answer = await stub.Register(
        federation_pb2.RegisterRequest(
            worker_name=name,
            instance_id="1",
            capabilities=to_message(Capabilities(), federation_pb2.Capabilities),
        ),
        timeout=60,
    )
    await stub.ConfirmAdapter(
        federation_pb2.ConfirmAdapterRequest(
            session_token=answer.session_token,
            layout=to_message(layout, adapter_pb2.AdapterLayout),
        ),
        timeout=60,
    )
    return Joined(name, channel, stub, answer.session_token, answer.run_id)
