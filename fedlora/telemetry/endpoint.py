"""The page that Prometheus reads: GET /metrics over plain HTTP, answered by a thread of its own.

It knows nothing of gRPC and shares no thread with it, so a slow reader costs nobody a round. What
it shows holds no token, no tensor and no text of an example; it names runs and workers, so it
belongs on loopback or in a network of the operator's.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from fedlora.errors import FedLoraError, Reason

__all__ = ["MetricsEndpoint", "is_seen_outside"]

log = structlog.get_logger(__name__)

_PATH = "/metrics"

_REQUEST_SECONDS = 10.0
"""longest silence within a request: Prometheus itself gives up after as long"""

_POLL_SECONDS = 0.25
"""how soon an endpoint that is closed ends"""


class MetricsEndpoint:
    """Serves a registry while it is entered.

    Args:
        address: host:port, port 0 for any free one.
        registry: what is shown.
        key: the configuration key of the address, for errors.

    Raises:
        FedLoraError: INVALID_CONFIG for an address that is none, or cannot be bound.
    """

    def __init__(self, address: str, registry: CollectorRegistry, *, key: str) -> None:
        host, separator, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (host and separator and port.isdigit() and int(port) < 65536):
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"{key} must be host:port, got {address[:200]!r}",
                hint="For example 127.0.0.1:9400; empty for no metrics",
            )
        try:
            self._server = _Server(host, int(port), registry)
        except OSError as error:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"cannot serve metrics on {address!r}: {error.strerror or error}",
                hint=f"Choose a free port, or 0 for any: {key}",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        """host:port that answers"""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        log.info("metrics_served", address=self.address)
        if is_seen_outside(str(self._server.server_address[0])):
            log.warning("metrics_in_plain_http", address=self.address, shows="runs and workers")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_seen_outside(host: str) -> bool:
    """Whether other machines reach what is bound to an address."""
    return not ipaddress.ip_address(host).is_loopback


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.registry = registry
        # Requests have threads of their own, in which nothing is bound.
        self._log = log.bind(**structlog.contextvars.get_contextvars())
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        # A reader that went away, or a mistake of ours: neither may end in bare text on stderr.
        self._log.warning("metrics_not_served", exc_info=sys.exception())


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != _PATH:
            self.send_error(404, explain=f"Metrics are at {_PATH}")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        # Which Python this is concerns nobody outside.
        return "fedlora"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """One line a scrape would fill the log with nothing."""
