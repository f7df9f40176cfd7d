"""The calls that carry payloads, with serializers that leave the payload where it is.

Paths, types and the bytes on the wire are those of the generated stubs.
"""

from __future__ import annotations

from typing import Any

import grpc

from fedlora.proto.v1 import admin_pb2, federation_pb2
from fedlora.rpc.services import ADMIN_SERVICE, FEDERATION_SERVICE
from fedlora.wire.payload import reader_of, serialize

__all__ = ["export_adapter", "pull_adapter", "push_update"]


def push_update(channel: grpc.Channel) -> Any:
    """FederationService.PushUpdate; requests are messages, or bytes that are encoded already."""
    return channel.stream_unary(
        f"/{FEDERATION_SERVICE}/PushUpdate",
        request_serializer=serialize,
        response_deserializer=federation_pb2.PushUpdateResponse.FromString,
    )


def pull_adapter(channel: grpc.Channel) -> Any:
    """FederationService.PullAdapter; answers are a header, then `Chunk`s and a `Commit`."""
    return channel.unary_stream(
        f"/{FEDERATION_SERVICE}/PullAdapter",
        request_serializer=federation_pb2.PullAdapterRequest.SerializeToString,
        response_deserializer=reader_of(federation_pb2.PullAdapterResponse),
    )


def export_adapter(channel: grpc.Channel) -> Any:
    """AdminService.ExportAdapter; answers are a header, then `Chunk`s and a `Commit`."""
    return channel.unary_stream(
        f"/{ADMIN_SERVICE}/ExportAdapter",
        request_serializer=admin_pb2.ExportAdapterRequest.SerializeToString,
        response_deserializer=reader_of(admin_pb2.ExportAdapterResponse),
    )
