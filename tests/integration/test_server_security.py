"""What a server refuses to begin with, and bearer tokens over real connections."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.federation import ScriptedWorker, config, reason_of, serving
from support.identities import Federation, channel_of
from support.runs import run_spec

from aggregator_service.app import Aggregator
from client_worker.transport.client import FederationClient
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.bearer import add_bearer_token
from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc, federation_pb2_grpc
from fedlora.rpc.security import ClientSecurity
from fedlora.runs.tasks import Capabilities
from fedlora_cli.admin_client import AdminClient
from fedlora_cli.commands.pki import token
from fedlora_cli.connection import SECURITY


async def refusal(tmp_path: Path, **settings: Any) -> str:
    with pytest.raises(FedLoraError) as caught:
        async with Aggregator(config(tmp_path, **settings)):
            raise AssertionError("it serves")
    assert caught.value.reason is Reason.INVALID_CONFIG
    return str(caught.value)


async def test_plain_text_beyond_this_machine_is_served_only_when_asked_for(tmp_path: Path):
    text = await refusal(tmp_path, address="0.0.0.0:0")
    assert "server.address is 0.0.0.0:0, which other machines reach" in text
    assert "fedlora pki init" in text
    tokens = tmp_path / "tokens"
    add_bearer_token(tokens, AccessRole.WORKER, "w", issued_at=0, expires_at=1)
    await refusal(tmp_path, address="0.0.0.0:0", tokens_file=tokens)


async def test_an_identity_that_is_no_servers_is_not_served_with(tmp_path: Path):
    worker = Federation(tmp_path).member(AccessRole.WORKER, "w-1")
    assert "a server needs one of the role server" in await refusal(tmp_path, identity_dir=worker)


async def test_who_dials_a_host_that_the_certificate_does_not_name_is_told_so(tmp_path: Path):
    federation = Federation(tmp_path / "federation")
    elsewhere = federation.member(AccessRole.SERVER, "aggregator", hosts=["aggregator.example"])
    security = ClientSecurity(identity_dir=federation.member(AccessRole.OPERATOR, "o"))
    async with serving(tmp_path, None, identity_dir=elsewhere) as served:
        client = AdminClient(served.aggregator.address, security)
        with client, pytest.raises(FedLoraError) as caught:
            await asyncio.to_thread(client.list_runs)
    assert caught.value.reason is Reason.UNAVAILABLE
    assert "does not name this host" in caught.value.hint
    assert "--server-name" in caught.value.hint


def test_an_invitation_never_takes_a_files_place_and_none_is_made(tmp_path: Path):
    out = tmp_path / "a.json"
    out.write_text("an invitation")
    own = Federation(tmp_path / "federation").member(AccessRole.OPERATOR, "o")
    asked = SECURITY.set(ClientSecurity(identity_dir=own))
    try:
        with pytest.raises(FedLoraError, match="Name another file with --out") as caught:
            # There is no server: it is not asked.
            token("hospital-a", "127.0.0.1:1", out, server="127.0.0.1:1")
    finally:
        SECURITY.reset(asked)
    assert caught.value.reason is Reason.ALREADY_EXISTS
    assert out.read_text() == "an invitation"


@pytest.mark.parametrize("missing", ["identity_dir", "authority_dir"])
def test_enrolment_without_what_it_needs_is_refused(tmp_path: Path, missing: str):
    federation = Federation(tmp_path)
    given = {
        "identity_dir": federation.server(),
        "authority_dir": federation.authority_dir,
        "enrolment_address": "127.0.0.1:0",
    }
    with pytest.raises(FedLoraError, match=f"without server.{missing}"):
        config(tmp_path, **{k: v for k, v in given.items() if k != missing})


@pytest.mark.parametrize("encrypted", [False, True])
async def test_bearer_tokens_take_the_place_of_certificates(tmp_path: Path, encrypted: bool):
    federation, now = Federation(tmp_path / "federation"), time.time()
    tokens = tmp_path / "tokens"
    files = {}
    for role, name in (
        (AccessRole.WORKER, "w-1"),
        (AccessRole.WORKER, "w-2"),
        (AccessRole.OBSERVER, "o"),
    ):
        files[name] = tmp_path / name
        files[name].write_text(
            add_bearer_token(tokens, role, name, issued_at=now - 1, expires_at=now + 3600)
        )
    settings = {"identity_dir": federation.server()} if encrypted else {}
    known = {"identity_dir": federation.authority_dir} if encrypted else {}
    async with serving(tmp_path, run_spec(num_workers=1), tokens_file=tokens, **settings) as served:
        address = served.aggregator.address
        credentials = grpc.ssl_channel_credentials(
            (federation.authority_dir / "ca.crt").read_bytes()
        )
        nobody = (
            grpc.aio.secure_channel(address, credentials)
            if encrypted
            else grpc.aio.insecure_channel(address)
        )
        async with nobody:
            stub = federation_pb2_grpc.FederationServiceStub(nobody)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ScriptedWorker(stub, "w-1").register()
            assert reason_of(caught.value) == "UNAUTHENTICATED"

        def register(token_of: str, name: str) -> None:
            security = ClientSecurity(token_file=files[token_of], **known)
            with FederationClient(address, dialler=security) as client:
                client.register(
                    worker_name=name,
                    run_name="",
                    instance_id="i",
                    capabilities=Capabilities(),
                )

        await asyncio.to_thread(register, "w-1", "w-1")
        for token_of, name in (("w-2", "w-1"), ("o", "o")):
            with pytest.raises(FedLoraError) as refused:
                await asyncio.to_thread(register, token_of, name)
            assert refused.value.reason is Reason.PERMISSION_DENIED

        def look() -> int:
            security = ClientSecurity(token_file=files["o"], **known)
            with security.dial(address) as channel:
                stub = admin_pb2_grpc.AdminServiceStub(channel)
                return len(stub.ListRuns(admin_pb2.ListRunsRequest(), timeout=10).runs)

        assert await asyncio.to_thread(look) == 1


async def test_a_worker_goes_on_over_a_new_connection_once_its_identity_has_changed(tmp_path: Path):

    federation = Federation(tmp_path / "federation")
    folder = federation.member(AccessRole.WORKER, "w-1")
    async with serving(
        tmp_path, run_spec(num_workers=1), identity_dir=federation.server()
    ) as served:
        security = ClientSecurity(identity_dir=folder)

        def twice() -> int:
            with FederationClient(served.aggregator.address, dialler=security) as client:
                session = client.register(
                    worker_name="w-1", run_name="", instance_id="i", capabilities=Capabilities()
                )
                federation.member(AccessRole.WORKER, "w-1")
                client.heartbeat(session.session_token, "")
                client.heartbeat(session.session_token, "")
                return len(client._connections)

        assert await asyncio.to_thread(twice) == 2


async def test_a_worker_cannot_pose_as_the_server(tmp_path: Path):
    federation = Federation(tmp_path)
    folder, victim = (federation.member(AccessRole.WORKER, name) for name in ("w-1", "w-2"))
    pair = ((folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes())
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        async with channel_of(victim, f"127.0.0.1:{port}") as channel:
            stub = federation_pb2_grpc.FederationServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ScriptedWorker(stub, "w-2").register()
    finally:
        await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "unsupported certificate purpose" in (caught.value.details() or "")
