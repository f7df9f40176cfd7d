"""Nobody learns anything: whoever calls whatever, and for whatever reason he is refused."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from support.every_method import (
    GUARDED,
    HEALTH,
    METHODS,
    ON_THE_MAIN_PORT,
    REFLECTION,
    call,
    check_says_not_authenticated,
    refused,
    whole,
)
from support.identities import Federation, credentials_of
from support.proofs import BearerTokens, Certificates, Proofs, dial, secured

from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2, identity_pb2

MEMBERS = (AccessRole.WORKER, AccessRole.OPERATOR, AccessRole.OBSERVER)
LIFE_SECONDS = 5.0
"""of what expires while its connection stands: enough to dial"""


async def is_let_in(channel: grpc.aio.Channel) -> bool:
    """Whether somebody is a member, of whichever role."""
    try:
        await call(channel, REFLECTION)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


async def until_member(channel: grpc.aio.Channel, *, is_one: bool) -> None:
    """Returns once somebody is a member, or no longer one."""
    async with asyncio.timeout(30):
        while await is_let_in(channel) is not is_one:  # noqa: ASYNC110 - has no event
            await asyncio.sleep(0.05)


async def test_whom_the_server_does_not_know_is_told_the_same_of_every_method(
    proofs: Proofs, tmp_path: Path
):
    outsiders = proofs.outsiders()
    revoked = proofs.of(AccessRole.WORKER, "gone")
    async with secured(proofs, tmp_path) as served:
        role = identity_pb2.ACCESS_ROLE_WORKER
        await served.admin.Revoke(admin_pb2.RevokeRequest(role=role, name="gone"), timeout=10)
        errors = []
        for credentials in (*outsiders.values(), revoked):
            async with dial(credentials, served.aggregator.address) as channel:
                errors += [await refused(channel, method) for method in GUARDED]
    check_says_not_authenticated(errors)


@pytest.mark.parametrize("way", ["expired", "revoked"])
async def test_who_is_nobody_any_longer_may_call_nothing_on_a_standing_connection(
    proofs: Proofs, tmp_path: Path, way: str
):
    async with secured(proofs, tmp_path) as served, AsyncExitStack() as stack:
        seconds = LIFE_SECONDS if way == "expired" else 3600.0
        shown = [proofs.of(role, "gone", seconds=seconds) for role in MEMBERS]
        address = served.aggregator.address
        channels = [await stack.enter_async_context(dial(c, address)) for c in shown]
        for channel in channels:
            await until_member(channel, is_one=True)
        if way == "revoked":
            for role in MEMBERS:
                wire = identity_pb2.AccessRole.Value(f"ACCESS_ROLE_{role.name}")
                await served.admin.Revoke(admin_pb2.RevokeRequest(role=wire, name="gone"))
        errors = []
        for channel in channels:
            await until_member(channel, is_one=False)
            errors += [await refused(channel, method) for method in GUARDED]
            # The connection stands: with an expired certificate there would be no other.
            await call(channel, HEALTH)
        check_says_not_authenticated(errors)


async def test_a_token_whose_line_is_taken_out_is_nobodys_on_a_standing_connection(tmp_path: Path):
    proofs = BearerTokens(tmp_path / "members")
    member = proofs.of(AccessRole.WORKER, "w-1")
    async with (
        secured(proofs, tmp_path) as served,
        dial(member, served.aggregator.address) as channel,
    ):
        await until_member(channel, is_one=True)
        lines = proofs.file.read_text().splitlines(keepends=True)
        proofs.file.write_text("".join(line for line in lines if " w-1 " not in line))
        await until_member(channel, is_one=False)
        check_says_not_authenticated([await refused(channel, method) for method in GUARDED])


async def test_the_handshake_lets_nobody_in_and_says_nothing(tmp_path: Path):
    proofs = Certificates(tmp_path / "members")
    federation = proofs.federation
    authorities = (federation.authority_dir / "ca.crt").read_bytes()
    stranger = Federation(tmp_path / "other").member(AccessRole.WORKER, "w-1")
    # The stranger knows the server: only the server does not know him.
    (stranger / "ca.crt").write_bytes(authorities)
    outsiders = {
        "nobody": grpc.ssl_channel_credentials(authorities),
        "of an unknown authority": credentials_of(stranger),
        "expired": proofs.of(AccessRole.WORKER, "w-1", seconds=-5.0),
        "the server itself": credentials_of(federation.server()),
    }
    async with secured(proofs, tmp_path) as served:
        errors = []
        for credentials in outsiders.values():
            async with dial(credentials, served.aggregator.address) as channel:
                # At once: each waits for a handshake, and gRPC waits longer before each next one.
                errors += await asyncio.gather(*(refused(channel, m) for m in ON_THE_MAIN_PORT))
        ((code, text, before, after),) = {whole(error) for error in errors}
        assert code is grpc.StatusCode.UNAVAILABLE
        assert (text or "").endswith("Socket closed")
        assert (before, after) == ((), ())


async def test_plain_text_is_not_answered_where_encryption_is(proofs: Proofs, tmp_path: Path):
    async with (
        secured(proofs, tmp_path) as served,
        grpc.aio.insecure_channel(served.aggregator.address) as channel,
    ):
        errors = await asyncio.gather(*(refused(channel, m) for m in ON_THE_MAIN_PORT))
    assert {e.code() for e in errors} == {grpc.StatusCode.UNAVAILABLE}


async def test_plain_health_checks_are_answered_beside_and_nothing_else_is(
    proofs: Proofs, tmp_path: Path
):
    async with (
        secured(proofs, tmp_path, health_address="127.0.0.1:0") as served,
        grpc.aio.insecure_channel(served.aggregator.health_address) as channel,
    ):
        await call(channel, HEALTH)
        others = [m for m in METHODS if "Health" not in m]
        codes = {(await refused(channel, method)).code() for method in others}
    assert codes == {grpc.StatusCode.UNIMPLEMENTED}
