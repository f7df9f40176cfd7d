"""Calls of those whom the server does not know, and calls that never say what they want."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.every_method import HEALTH
from support.proofs import BearerTokens, Proofs, dial, secured
from support.waiting import until

from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2
from fedlora.rpc.services import ADMIN_SERVICE, ENROLMENT_SERVICE, FEDERATION_SERVICE

PLACES = 8
"""of a server, one of which may be a stranger's"""

WATCH = HEALTH.replace("/Check", "/Watch")


@contextmanager
def opened(channel: grpc.aio.Channel, method: str, number: int) -> Iterator[list[Any]]:
    """Calls without a message."""
    calls = [channel.stream_unary(method)() for _ in range(number)]
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("method", [f"/{FEDERATION_SERVICE}/Register", HEALTH, WATCH])
async def test_strangers_that_send_nothing_leave_members_their_places(tmp_path: Path, method: str):
    proofs = BearerTokens(tmp_path / "members")
    nobody = proofs.outsiders()["nobody"]
    async with secured(proofs, tmp_path, max_concurrent_rpcs=PLACES) as served:
        address = served.aggregator.address
        async with dial(nobody, address) as channel:
            with opened(channel, method, 2 * PLACES) as calls:
                await until(
                    lambda: sum(call.done() for call in calls) >= len(calls) - 1
                )  # one is heard out
                await served.admin.ListRuns(admin_pb2.ListRunsRequest(), timeout=30)


async def test_strangers_that_enrol_and_send_nothing_are_few(proofs: Proofs, tmp_path: Path):
    federation = proofs.federation
    settings = {
        "authority_dir": federation.authority_dir,
        "enrolment_address": "127.0.0.1:0",
        "max_concurrent_rpcs": PLACES,
        "idle_timeout_seconds": 0.3,
    }
    nobody = grpc.ssl_channel_credentials((federation.authority_dir / "ca.crt").read_bytes())
    async with (
        secured(proofs, tmp_path, **settings) as served,
        dial(nobody, served.aggregator.enrolment_address) as channel,
    ):
        with opened(channel, f"/{ENROLMENT_SERVICE}/Enrol", 2 * PLACES) as calls:
            codes = {await call.code() for call in calls}
    assert codes <= {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }, "none of them stays"


async def test_a_member_says_what_it_wants_in_time(proofs: Proofs, tmp_path: Path):
    operator = proofs.of(AccessRole.OPERATOR, "o")
    async with (
        secured(proofs, tmp_path, idle_timeout_seconds=0.3) as served,
        dial(operator, served.aggregator.address) as channel,
    ):
        with opened(channel, f"/{ADMIN_SERVICE}/ListRuns", 1) as calls:
            assert await calls[0].code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "a message was expected within 0.3 s, got none" in await calls[0].details()
        empty = channel.stream_unary(f"/{ADMIN_SERVICE}/ListRuns")()
        await empty.done_writing()
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_secured_server_tells_whoever_watches_whether_it_serves(
    proofs: Proofs, tmp_path: Path
):
    operator = proofs.of(AccessRole.OPERATOR, "o")
    async with (
        secured(proofs, tmp_path) as served,
        dial(operator, served.aggregator.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=30
        )
        told = await watch.read()
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
