"""The gRPC server: services, health, and an orderly end."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aggregator_service.bounds import pace_rules
from aggregator_service.config import AggregatorConfig
from aggregator_service.coordinator import Coordinator
from aggregator_service.enrolment import Enrolment
from aggregator_service.transport.admin_servicer import AdminServicer
from aggregator_service.transport.callers import Callers, CertificateCallers, TokenCallers
from aggregator_service.transport.encoded_files import EncodedFiles
from aggregator_service.transport.encryption import ServerIdentity, check_exposure
from aggregator_service.transport.federation_servicer import FederationServicer
from aggregator_service.transport.guard import Guard
from aggregator_service.transport.identity_servicer import EnrolmentServicer, IdentityServicer
from aggregator_service.transport.measured_calls import MeasuredCalls
from aggregator_service.transport.open_streams import OpenStreams
from aggregator_service.transport.payload_handlers import add_payload_handlers
from aggregator_service.uploads import Uploads
from aggregator_service.worker_calls import WorkerCalls
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import admin_pb2_grpc, federation_pb2_grpc, identity_pb2_grpc
from fedlora.rpc.channel import SERVER_OPTIONS
from fedlora.rpc.services import (
    ADMIN_SERVICE,
    FEDERATION_SERVICE,
    HEALTH_SERVICE,
    IDENTITY_SERVICE,
    REFLECTION_SERVICE,
)

__all__ = ["ALIVE", "GrpcServer"]

ALIVE = "alive"
"""health service by which liveness probes ask (deploy/kubernetes)"""

_STRANGERS_SHARE = 8
"""of all calls at a time, one in so many may be of those that anyone may make"""


class GrpcServer:
    """Serves a coordinator.

    Its services are at one address; where the configuration says so, enrolment and plain health
    checks are at addresses of their own.

    Health answers SERVING for "", FederationService and AdminService while calls are accepted and
    the disk takes what they bring, NOT_SERVING from the moment a stop begins. For "alive" it
    answers SERVING whatever the disk does: to start a server again helps no disk.

    Args:
        coordinator: what is served.
        workers: what workers may do.
        uploads: receives updates.
        enrolment: makes members, and knows who is revoked.
        config: addresses, identity, limits and grace.

    Raises:
        FedLoraError: INVALID_CONFIG for an identity that is of no use, or for plain text to other
            machines that nobody asked for.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        workers: WorkerCalls,
        uploads: Uploads,
        enrolment: Enrolment,
        config: AggregatorConfig,
    ) -> None:
        check_exposure(config)
        folder = config.identity_dir
        self._identity = ServerIdentity(folder) if folder is not None else None
        self._health = health.aio.HealthServicer()
        self._config = config
        self._coordinator = coordinator
        self._enrolment = enrolment
        self._reporting: asyncio.Task[None] | None = None
        self._streams = OpenStreams(
            # From then on its worker counts as lost, and the stream holds a place for nobody.
            silence_seconds=config.worker_timeout_seconds,
            check_serving=coordinator.check_serving,
        )
        self._server = self._main_server(workers, uploads)
        self._beside: list[grpc.aio.Server] = []

    async def start(self) -> str:
        """Binds and serves; returns the main address, with the port taken.

        Raises:
            FedLoraError: INVALID_CONFIG if an address cannot be bound.
        """
        config = self._config
        credentials = None
        if self._identity is not None:
            wants_one = config.tokens_file is None
            credentials = self._identity.credentials(asks_for_certificates=wants_one)
        address = _bind(self._server, config.address, "server.address", credentials)
        await self._server.start()
        if config.enrolment_address and self._identity is not None:
            server = grpc.aio.server(
                interceptors=self._interceptors(),
                options=SERVER_OPTIONS,
                maximum_concurrent_rpcs=config.max_concurrent_rpcs,
            )
            servicer = EnrolmentServicer(self._enrolment)
            identity_pb2_grpc.add_EnrolmentServiceServicer_to_server(servicer, server)
            credentials = self._identity.credentials(asks_for_certificates=False)
            self.enrolment_address = await self._serve_beside(
                server, config.enrolment_address, "server.enrolment_address", credentials
            )
        if config.health_address:
            server = grpc.aio.server(options=SERVER_OPTIONS)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            self.health_address = await self._serve_beside(
                server, config.health_address, "server.health_address", None
            )
        await self._health.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
        await self._report()
        self._reporting = asyncio.get_running_loop().create_task(self._keep_reporting())
        return address

    async def stop(self) -> None:
        """Refuses new calls, gives those in flight their grace, ends."""
        if self._reporting is not None:
            self._reporting.cancel()
        await self._health.enter_graceful_shutdown()
        # Only work in flight gets the grace; who merely waits comes back by itself.
        self._coordinator.drain()
        self._streams.end()
        await self._server.stop(self._config.shutdown_grace_seconds)
        for server in self._beside:
            await server.stop(None)

    enrolment_address = ""
    """host:port where join tokens are taken; empty for none"""
    health_address = ""
    """host:port of plain health checks; empty for none"""

    def _main_server(self, workers: WorkerCalls, uploads: Uploads) -> grpc.aio.Server:
        config = self._config
        server = grpc.aio.server(
            interceptors=self._interceptors(),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=config.max_concurrent_rpcs,
        )
        files = EncodedFiles(pace=pace_rules(config), on_sent=self._coordinator.telemetry.sent)
        federation = FederationServicer(workers, uploads, files, self._streams)
        admin = AdminServicer(self._coordinator, self._enrolment, files)
        identity = IdentityServicer(self._enrolment)
        federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        identity_pb2_grpc.add_IdentityServiceServicer_to_server(identity, server)
        add_payload_handlers(server, federation, admin)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            from grpc_reflection.v1alpha import reflection

            names = (
                FEDERATION_SERVICE,
                ADMIN_SERVICE,
                IDENTITY_SERVICE,
                HEALTH_SERVICE,
                REFLECTION_SERVICE,
            )
            reflection.enable_server_reflection(names, server)
        return server

    def _interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        config = self._config
        # Outermost: what the guard refuses is counted too. Each call pays, so only if asked for.
        measured = [MeasuredCalls(self._coordinator.telemetry)] if config.metrics_address else []
        guard = Guard(
            self._callers(),
            message_seconds=config.idle_timeout_seconds,
            most_strangers=max(1, config.max_concurrent_rpcs // _STRANGERS_SHARE),
        )
        return (*measured, guard)

    def _callers(self) -> Callers | None:
        is_revoked = self._enrolment.is_revoked
        if self._config.tokens_file is not None:
            return TokenCallers(self._config.tokens_file, is_revoked)
        if self._identity is not None:
            return CertificateCallers(self._identity.files.identity.federation, is_revoked)
        return None

    async def _serve_beside(
        self,
        server: grpc.aio.Server,
        wanted: str,
        key: str,
        credentials: grpc.ServerCredentials | None,
    ) -> str:
        address = _bind(server, wanted, key, credentials)
        await server.start()
        self._beside.append(server)
        return address

    async def _keep_reporting(self) -> None:
        while True:
            await self._coordinator.disk.wait_for_change()
            await self._report()

    async def _report(self) -> None:
        serving = self._coordinator.disk.takes_writes
        status = health_pb2.HealthCheckResponse
        for name in ("", FEDERATION_SERVICE, ADMIN_SERVICE):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)


def _bind(
    server: grpc.aio.Server, address: str, key: str, credentials: grpc.ServerCredentials | None
) -> str:
    """Takes a port; returns the address with it."""
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"cannot serve on {address!r}: {error}",
            hint=f"Choose a free port, or 0 for any: {key}",
        ) from error
    return f"{address.rsplit(':', 1)[0]}:{port}"
