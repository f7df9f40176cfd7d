"""Server ends of the calls that carry payloads: the generated handlers would copy every chunk."""

from __future__ import annotations

import grpc

from aggregator_service.transport.admin_servicer import AdminServicer
from aggregator_service.transport.federation_servicer import FederationServicer
from fedlora.proto.v1 import admin_pb2, federation_pb2
from fedlora.rpc.services import ADMIN_SERVICE, FEDERATION_SERVICE
from fedlora.wire.payload import reader_of, serialize

__all__ = ["add_payload_handlers"]


def add_payload_handlers(
    server: grpc.aio.Server, federation: FederationServicer, admin: AdminServicer
) -> None:
    """Takes the place of the generated handlers of these calls, which are there already."""
    server.add_registered_method_handlers(
        FEDERATION_SERVICE,
        {
            "PushUpdate": grpc.stream_unary_rpc_method_handler(
                federation.PushUpdate,
                request_deserializer=reader_of(federation_pb2.PushUpdateRequest),
                response_serializer=serialize,
            ),
            "PullAdapter": grpc.unary_stream_rpc_method_handler(
                federation.PullAdapter,
                request_deserializer=federation_pb2.PullAdapterRequest.FromString,
                response_serializer=serialize,
            ),
        },
    )
    server.add_registered_method_handlers(
        ADMIN_SERVICE,
        {
            "ExportAdapter": grpc.unary_stream_rpc_method_handler(
                admin.ExportAdapter,
                request_deserializer=admin_pb2.ExportAdapterRequest.FromString,
                response_serializer=serialize,
            )
        },
    )
