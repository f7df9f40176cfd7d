from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aggregator_service import healthcheck


@pytest.fixture
def server() -> Iterator[tuple[health.HealthServicer, int]]:
    """A real server that speaks the health protocol, and its port."""
    servicer = health.HealthServicer()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, port
    server.stop(None).wait()


def outcome(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["healthcheck", *arguments])
    return healthcheck.main()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", ""])
def test_a_server_that_serves_is_healthy_whatever_host_it_was_told(server, monkeypatch, host):
    servicer, port = server
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    monkeypatch.setenv("FEDLORA_SERVER__ADDRESS", f"{host}:{port}")
    assert outcome(monkeypatch) == 0


def test_a_server_on_its_way_out_is_not_healthy_and_says_why(server, monkeypatch, capsys):
    servicer, port = server
    servicer.enter_graceful_shutdown()
    assert outcome(monkeypatch, f"127.0.0.1:{port}") == 1
    assert capsys.readouterr().out == f"127.0.0.1:{port}: NOT_SERVING\n"


def test_an_argument_is_preferred_to_the_environment(server, monkeypatch):
    servicer, port = server
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    monkeypatch.setenv("FEDLORA_SERVER__ADDRESS", "127.0.0.1:1")
    assert outcome(monkeypatch, f"127.0.0.1:{port}") == 0


def test_nobody_listening_is_unavailable_and_not_an_exception():
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert healthcheck.check(address, timeout_seconds=20) == "UNAVAILABLE"


def test_the_check_gives_up_before_the_image_does():
    # HEALTHCHECK --timeout=4s of docker/aggregator.Dockerfile.
    assert healthcheck.TIMEOUT_SECONDS < 4


def test_a_server_with_identities_is_asked_where_it_answers_in_plain_text(server, monkeypatch):
    servicer, port = server
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    monkeypatch.setenv("FEDLORA_SERVER__ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("FEDLORA_SERVER__HEALTH_ADDRESS", f"127.0.0.1:{port}")
    assert outcome(monkeypatch) == 0
