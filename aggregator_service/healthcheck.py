"""`python -m aggregator_service.healthcheck [HOST:PORT]`: exit code 0 if the server takes calls.

Asks the standard gRPC health service. It imports neither torch nor the configuration, so that a
container can afford it every few seconds; the address is FEDLORA_SERVER__HEALTH_ADDRESS or
FEDLORA_SERVER__ADDRESS, as the image sets them.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["check", "main"]

DEFAULT_ADDRESS = "127.0.0.1:8400"
TIMEOUT_SECONDS = 3.0
"""below the timeout of the images' HEALTHCHECK, so that the reason is still printed"""

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104


def check(address: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    """State of the server at `address`.

    Args:
        address: host:port as configured; a host that means all interfaces is asked on loopback.
        timeout_seconds: patience.

    Returns:
        Name of the serving status, "SERVING" if all is well, or of the gRPC status it failed with.
    """
    host, _, port = address.rpartition(":")
    with grpc.insecure_channel(f"{_ANY_HOST.get(host, host)}:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def main() -> int:
    """Prints the state and returns the exit code."""
    if len(sys.argv) > 1:
        address = sys.argv[1]
    else:
        # The address for health checks alone is in plain text, whatever the other is.
        names = ("FEDLORA_SERVER__HEALTH_ADDRESS", "FEDLORA_SERVER__ADDRESS")
        address = next((os.environ[n] for n in names if os.environ.get(n)), DEFAULT_ADDRESS)
    state = check(address)
    print(f"{address}: {state}")  # noqa: T201
    return 0 if state == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
