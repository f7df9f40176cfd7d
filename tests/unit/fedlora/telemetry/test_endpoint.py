"""The page for Prometheus: over a real socket, with a real registry."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector
from support.logs import logged

from fedlora.errors import FedLoraError, Reason
from fedlora.telemetry.endpoint import MetricsEndpoint, is_seen_outside

KEY = "server.metrics_address"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("apples", "Apples.", registry=registry).inc(3)
    return registry


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[MetricsEndpoint]:
    with MetricsEndpoint("127.0.0.1:0", registry, key=KEY) as endpoint:
        yield endpoint


def get(address: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", path)
    return connection.getresponse()


def test_the_page_shows_the_registry_in_prometheus_own_format(endpoint: MetricsEndpoint):
    page = get(endpoint.address, "/metrics")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/plain")
    assert "apples_total 3.0" in page.read().decode()


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/../metrics", "/health"])
def test_there_is_no_other_page(endpoint: MetricsEndpoint, path: str):
    page = get(endpoint.address, path)
    assert page.status == 404
    assert "apples" not in page.read().decode()


def test_it_does_not_say_what_serves_it(endpoint: MetricsEndpoint):
    assert get(endpoint.address, "/metrics").headers["Server"] == "fedlora"


def test_only_reading_is_possible(endpoint: MetricsEndpoint):
    connection = http.client.HTTPConnection(endpoint.address, timeout=20)
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 501


def test_a_silent_reader_keeps_nobody_else_waiting(endpoint: MetricsEndpoint):
    host, port = endpoint.address.split(":")
    with socket.create_connection((host, int(port))):
        assert get(endpoint.address, "/metrics").status == 200


@pytest.mark.parametrize(
    ("host", "seen"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("10.1.2.3", True)]
)
def test_an_address_that_others_reach_is_told_from_one_that_is_ours(host: str, seen: bool):
    assert is_seen_outside(host) is seen


def test_nobody_answers_after_the_end(registry: CollectorRegistry):
    with MetricsEndpoint("127.0.0.1:0", registry, key=KEY) as endpoint:
        address = endpoint.address
    with pytest.raises(ConnectionRefusedError):
        get(address, "/metrics")


@pytest.mark.parametrize("address", ["9400", "127.0.0.1", "127.0.0.1:", ":9400", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused_by_its_key(registry: CollectorRegistry, address: str):
    with pytest.raises(FedLoraError, match=r"server\.metrics_address must be host:port") as caught:
        MetricsEndpoint(address, registry, key=KEY)
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_a_port_that_is_taken_is_refused_with_the_way_out(
    registry: CollectorRegistry, endpoint: MetricsEndpoint
):
    with pytest.raises(FedLoraError, match="cannot serve metrics on") as caught:
        MetricsEndpoint(endpoint.address, registry, key=KEY)
    assert "0 for any" in str(caught.value)


class Broken(Collector):
    """Fails at every scrape."""

    def collect(self):
        raise RuntimeError("mistake")


def test_a_mistake_of_ours_ends_in_the_log_and_not_in_a_page(registry: CollectorRegistry):
    registry.register(Broken())
    with (
        logged({"FEDLORA_LOG_FORMAT": "json"}) as stream,
        MetricsEndpoint("127.0.0.1:0", registry, key=KEY) as endpoint,
        pytest.raises(http.client.RemoteDisconnected),
    ):
        get(endpoint.address, "/metrics")
    assert "metrics_not_served" in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()
