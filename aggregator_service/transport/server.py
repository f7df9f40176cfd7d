"""The gRPC server: services, health, and an orderly end."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aggregator_service.config import AggregatorConfig
from aggregator_service.coordinator import Coordinator
from aggregator_service.transport.admin_servicer import AdminServicer
from aggregator_service.transport.encoded_files import EncodedFiles
from aggregator_service.transport.federation_servicer import FederationServicer
from aggregator_service.transport.payload_handlers import add_payload_handlers
from aggregator_service.uploads import Uploads
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import admin_pb2_grpc, federation_pb2_grpc
from fedlora.rpc.channel import SERVER_OPTIONS
from fedlora.rpc.services import ADMIN_SERVICE, FEDERATION_SERVICE

__all__ = ["GrpcServer"]


class GrpcServer:
    """Serves a coordinator.

    Health answers SERVING for "", FederationService and AdminService while calls are accepted and
    the disk takes what they bring, NOT_SERVING from the moment a stop begins.

    Args:
        coordinator: what is served.
        uploads: receives updates.
        config: address, limits and grace.
    """

    def __init__(
        self, coordinator: Coordinator, uploads: Uploads, config: AggregatorConfig
    ) -> None:
        self._server = grpc.aio.server(
            options=SERVER_OPTIONS, maximum_concurrent_rpcs=config.max_concurrent_rpcs
        )
        self._health = health.aio.HealthServicer()
        self._grace = config.shutdown_grace_seconds
        files = EncodedFiles()
        federation = FederationServicer(coordinator, uploads, files)
        admin = AdminServicer(coordinator, files)
        federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._server)
        add_payload_handlers(self._server, federation, admin)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            from grpc_reflection.v1alpha import reflection

            names = (
                FEDERATION_SERVICE,
                ADMIN_SERVICE,
                health.SERVICE_NAME,
                reflection.SERVICE_NAME,
            )
            reflection.enable_server_reflection(names, self._server)
        self._address = config.address
        self._coordinator = coordinator
        self._reporting: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Binds and serves; returns the address, with the port taken.

        Raises:
            FedLoraError: UNAVAILABLE if the address cannot be bound.
        """
        host = self._address.rsplit(":", 1)[0]
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"cannot serve on {self._address!r}: {error}",
                hint="Choose a free port, or 0 for any: server.address",
            ) from error
        await self._server.start()
        await self._report()
        self._reporting = asyncio.get_running_loop().create_task(self._keep_reporting())
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Refuses new calls, gives those in flight their grace, ends."""
        if self._reporting is not None:
            self._reporting.cancel()
        await self._health.enter_graceful_shutdown()
        # Only work in flight gets the grace; who merely waits comes back by itself.
        self._coordinator.drain()
        await self._server.stop(self._grace)

    async def _keep_reporting(self) -> None:
        while True:
            await self._coordinator.disk.wait_for_change()
            await self._report()

    async def _report(self) -> None:
        serving = self._coordinator.disk.takes_writes
        status = health_pb2.HealthCheckResponse
        for name in ("", FEDERATION_SERVICE, ADMIN_SERVICE):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)
