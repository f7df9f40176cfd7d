"""How somebody becomes a member, stays one, and ceases to be one, over real connections."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from support.federation import Served, reason_of, serving
from support.identities import Federation, channel_of, moment, names
from support.observed_federation import scrape
from support.runs import run_spec
from support.tiny_trainer import TinyTrainer
from support.waiting import until

from aggregator_service.enrolment import Enrolment
from aggregator_service.transport.identity_servicer import EnrolmentServicer
from client_worker.app import run_worker
from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from client_worker.transport.enrolment import enrol, renew
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.identity.certificates import new_key, request_for, to_pem
from fedlora.identity.folder import CERTIFICATE, read_identity, write_identity
from fedlora.identity.invitation import InvitationFile, read_invitation, write_invitation
from fedlora.identity.names import AccessRole, Identity
from fedlora.identity.swap import holds
from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc, identity_pb2, identity_pb2_grpc


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "federation")


@asynccontextmanager
async def enrolling(
    federation: Federation, tmp_path: Path, **settings: Any
) -> AsyncIterator[Served]:
    """A server that certifies, and an operator's channel to it."""
    settings = {
        "identity_dir": federation.server(),
        "authority_dir": federation.authority_dir,
        "enrolment_address": "127.0.0.1:0",
        **settings,
    }
    async with serving(tmp_path, run_spec(num_workers=1), **settings) as served:
        operator = federation.member(AccessRole.OPERATOR, "operator")
        async with channel_of(operator, served.aggregator.address) as channel:
            served.admin = admin_pb2_grpc.AdminServiceStub(channel)
            yield served


async def invited(
    served: Served, federation: Federation, name: str = "w-1", *, seconds: float = 60
) -> InvitationFile:
    answer = await served.admin.Invite(
        admin_pb2.InviteRequest(role=identity_pb2.ACCESS_ROLE_WORKER, name=name, seconds=seconds),
        timeout=10,
    )
    return InvitationFile(
        enrolment=served.aggregator.enrolment_address,
        role=AccessRole.WORKER,
        name=name,
        join_token=answer.join_token,
        expires_at=answer.expires_at.seconds,
        authorities_pem=(federation.authority_dir / "ca.crt").read_text(),
    )


async def revoke(served: Served, name: str) -> None:
    wish = admin_pb2.RevokeRequest(role=identity_pb2.ACCESS_ROLE_WORKER, name=name)
    await served.admin.Revoke(wish, timeout=10)


async def registers(served: Served, folder: Path, name: str) -> None:
    address = served.aggregator.address
    async with channel_of(folder, address) as channel:
        await Served(channel, address).worker(name)


async def test_an_invitation_becomes_an_identity_that_the_server_knows(federation, tmp_path: Path):
    async with enrolling(federation, tmp_path) as served:
        invitation = await invited(served, federation)
        identity = await asyncio.to_thread(enrol, invitation, tmp_path / "own")
        assert identity == Identity(federation="lab", role=AccessRole.WORKER, name="w-1")
        assert (tmp_path / "own" / "tls.key").stat().st_mode & 0o777 == 0o600
        await registers(served, tmp_path / "own", "w-1")
        answer = await served.admin.ListMembers(admin_pb2.ListMembersRequest(), timeout=10)
        (member,) = answer.members
        until_seconds = read_identity(tmp_path / "own", now=time.time()).certified.not_after
        assert member.certified_until.seconds == until_seconds
        state = (tmp_path / "state" / "fedlora.sqlite").read_bytes()
        wal = (tmp_path / "state" / "fedlora.sqlite-wal").read_bytes()
        assert invitation.join_token.encode() not in state + wal, "only its digest is kept"


async def test_enrolment_is_counted_as_every_call_is(federation, tmp_path: Path):
    async with enrolling(federation, tmp_path, metrics_address="127.0.0.1:0") as served:
        invitation = await invited(served, federation)
        await asyncio.to_thread(enrol, invitation, tmp_path / "own")
        page = await asyncio.to_thread(scrape, served.aggregator.metrics_address)
    assert 'fedlora_rpcs_total{code="OK",method="Enrol"} 1.0' in page.splitlines()


async def test_of_fifty_that_redeem_one_token_one_is_certified(federation, tmp_path: Path):
    async with enrolling(federation, tmp_path) as served:
        invitation = await invited(served, federation)
        authorities = invitation.authorities_pem.encode()
        async with grpc.aio.secure_channel(
            invitation.enrolment, grpc.ssl_channel_credentials(authorities)
        ) as channel:
            stub = identity_pb2_grpc.EnrolmentServiceStub(channel)
            requests = [request_for(new_key()) for _ in range(50)]
            answers = await asyncio.gather(
                *(
                    stub.Enrol(
                        identity_pb2.EnrolRequest(
                            join_token=invitation.join_token, certificate_request=request
                        ),
                        timeout=60,
                    )
                    for request in requests
                ),
                return_exceptions=True,
            )
            won = [i for i, a in enumerate(answers) if not isinstance(a, BaseException)]
            lost = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
            assert (len(won), len(lost)) == (1, 49)
            assert {reason_of(a) for a in lost} == {"UNAUTHENTICATED"}
            again = await stub.Enrol(
                identity_pb2.EnrolRequest(
                    join_token=invitation.join_token, certificate_request=requests[won[0]]
                ),
                timeout=10,
            )
            assert again == answers[won[0]], "its answer may have been lost"


@pytest.mark.parametrize("how", ["unknown", "expired", "of one revoked since"])
async def test_a_token_that_is_not_good_is_refused_and_nothing_says_why(
    federation, tmp_path: Path, how: str
):
    async with enrolling(federation, tmp_path) as served:
        invitation = await invited(served, federation, seconds=0.2 if how == "expired" else 60)
        if how == "unknown":
            invitation = replace(invitation, join_token="x" * 43)
        if how == "expired":
            wall = time.time() + 0.3
            await until(lambda: time.time() > wall)
        if how == "of one revoked since":
            await revoke(served, "w-1")
        late = replace(invitation, expires_at=time.time() + 60)
        with pytest.raises(FedLoraError) as caught:
            await asyncio.to_thread(enrol, late, tmp_path / "own")
        assert (caught.value.reason, caught.value.message) == (
            Reason.UNAUTHENTICATED,
            "not authenticated",
        )
        assert not holds(tmp_path / "own", CERTIFICATE)


async def test_whoever_was_revoked_comes_back_by_another_invitation(federation, tmp_path: Path):
    async with enrolling(federation, tmp_path) as served:
        first = await invited(served, federation)
        await asyncio.to_thread(enrol, first, tmp_path / "lost")
        await revoke(served, "w-1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registers(served, tmp_path / "lost", "w-1")
        assert reason_of(caught.value) == "UNAUTHENTICATED"
        second = await invited(served, federation)
        await asyncio.to_thread(enrol, second, tmp_path / "new")
        await registers(served, tmp_path / "new", "w-1")
        with pytest.raises(grpc.aio.AioRpcError):
            await registers(served, tmp_path / "lost", "w-1")


async def test_a_revocation_outlives_a_restart(federation, tmp_path: Path):
    folder = federation.member(AccessRole.WORKER, "w-1")
    async with enrolling(federation, tmp_path) as served:
        await revoke(served, "w-1")
    async with enrolling(federation, tmp_path) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registers(served, folder, "w-1")
        assert reason_of(caught.value) == "UNAUTHENTICATED"


async def test_a_member_renews_its_certificate_with_another_key(federation, tmp_path: Path):
    folder = federation.member(AccessRole.WORKER, "w-1")
    before = (folder / "tls.key").read_bytes()
    async with enrolling(federation, tmp_path, certificate_days=20) as served:
        until_seconds = await asyncio.to_thread(renew, served.aggregator.address, folder)
        assert until_seconds == pytest.approx(time.time() + 20 * 86400, abs=60)
        assert (folder / "tls.key").read_bytes() != before
        assert names(folder).name == "w-1"
        await registers(served, folder, "w-1")


async def test_a_request_says_nothing_of_who_it_is_for(federation, tmp_path: Path):
    key = new_key()
    boast = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("spiffe://lab/operator/operator")]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    async with enrolling(federation, tmp_path) as served:
        invitation = await invited(served, federation)
        authorities = invitation.authorities_pem.encode()
        async with grpc.aio.secure_channel(
            invitation.enrolment, grpc.ssl_channel_credentials(authorities)
        ) as channel:
            answer = await identity_pb2_grpc.EnrolmentServiceStub(channel).Enrol(
                identity_pb2.EnrolRequest(
                    join_token=invitation.join_token, certificate_request=boast
                ),
                timeout=10,
            )
    write_identity(
        tmp_path / "own",
        authorities_pem=authorities,
        certificates_pem=answer.certificate,
        key=key,
    )
    files = read_identity(tmp_path / "own", now=time.time())
    assert files.identity == Identity(federation="lab", role=AccessRole.WORKER, name="w-1")
    limits = files.certified.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not limits.value.ca


async def test_the_server_takes_over_a_renewed_certificate_without_a_restart(
    federation, tmp_path: Path
):
    folder, worker = federation.server(), federation.member(AccessRole.WORKER, "w-1")
    async with enrolling(federation, tmp_path, identity_dir=folder) as served:
        await registers(served, worker, "w-1")
        # Another authority follows; who is of the old one is still known by a bundle of both.
        other = Federation(tmp_path / "other")
        bundle = b"".join((f.authority_dir / "ca.crt").read_bytes() for f in (federation, other))
        key = new_key()
        certificate = other.authority.issue(
            Identity(federation="lab", role=AccessRole.SERVER, name="aggregator"),
            key.public_key(),
            now=moment(-60),
            days=1,
            hosts=["127.0.0.1"],
        )
        write_identity(
            folder, authorities_pem=bundle, certificates_pem=to_pem(certificate), key=key
        )
        newcomer = other.member(AccessRole.WORKER, "w-2")
        await registers(served, newcomer, "w-2")
        (worker / "ca.crt").write_bytes(bundle)
        await registers(served, worker, "w-1")
        # What cannot be used changes nothing.
        (folder / "tls.crt").write_bytes(b"rubbish")
        await registers(served, newcomer, "w-2")


async def test_a_worker_enrols_itself_and_finishes_the_run(federation, tmp_path: Path):
    spec = run_spec(num_rounds=1, num_workers=1, evaluate=False)
    settings = {
        "identity_dir": federation.server(),
        "authority_dir": federation.authority_dir,
        "enrolment_address": "127.0.0.1:0",
    }
    async with serving(tmp_path, spec, **settings) as served:
        operator = federation.member(AccessRole.OPERATOR, "operator")
        async with channel_of(operator, served.aggregator.address) as channel:
            served.admin = admin_pb2_grpc.AdminServiceStub(channel)
            write_invitation(tmp_path / "invitation.json", await invited(served, federation))
        config = WorkerConfig(
            server=served.aggregator.address,
            identity_dir=tmp_path / "own",
            invitation=tmp_path / "invitation.json",
            device="cpu",
            data=DataConfig(path="unused"),
        )
        code = await asyncio.to_thread(run_worker, config, create_trainer=TinyTrainer)
        assert code == ExitCode.OK
        assert names(tmp_path / "own").name == "w-1"
        assert served.aggregator.coordinator.run("test").state.workers["w-1"].num_updates == 1


def test_an_invitation_survives_its_file(tmp_path: Path):
    invitation = InvitationFile(
        enrolment="h:1",
        role=AccessRole.OBSERVER,
        name="n",
        join_token="t",
        expires_at=1.0,
        authorities_pem="p",
    )
    write_invitation(tmp_path / "i.json", invitation)
    assert read_invitation(tmp_path / "i.json") == invitation
    assert (tmp_path / "i.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"name": "w"}), "\udcff"])
def test_a_file_that_is_no_invitation_says_so(tmp_path: Path, text: str):
    (tmp_path / "i.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FedLoraError, match=r"is no invitation.*fedlora pki token"):
        read_invitation(tmp_path / "i.json")


class LosesItsFirstAnswer(EnrolmentServicer):
    """Redeems a token, and its answer never arrives."""

    def __init__(self, enrolment: Enrolment, lose: Callable[[], object] = lambda: None) -> None:
        super().__init__(enrolment)
        self.calls = 0
        self._lose = lose

    async def Enrol(self, request: Any, context: Any) -> Any:
        answer = await super().Enrol(request, context)
        self.calls += 1
        if self.calls == 1:
            self._lose()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        return answer


@asynccontextmanager
async def answering(servicer: EnrolmentServicer, folder: Path) -> AsyncIterator[str]:
    """The address of a server of that identity that has the servicer alone."""
    server = grpc.aio.server()
    identity_pb2_grpc.add_EnrolmentServiceServicer_to_server(servicer, server)
    pair = ((folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(
    federation, tmp_path: Path
):
    async with enrolling(federation, tmp_path) as served:
        invitation = await invited(served, federation)
        servicer = LosesItsFirstAnswer(served.aggregator.enrolment)
        async with answering(servicer, federation.server()) as address:
            lossy = replace(invitation, enrolment=address)
            await asyncio.to_thread(enrol, lossy, tmp_path / "own")
        assert servicer.calls == 2
        await registers(served, tmp_path / "own", "w-1")


async def test_who_is_killed_before_the_answer_enrols_with_the_same_invitation(
    federation, tmp_path: Path
):
    own, file = tmp_path / "own", tmp_path / "invitation.json"
    async with enrolling(federation, tmp_path) as served:
        invitation = await invited(served, federation)
        servicer = LosesItsFirstAnswer(served.aggregator.enrolment, lambda: asker.kill())
        async with answering(servicer, federation.server()) as address:
            lossy = replace(invitation, enrolment=address)
            write_invitation(file, lossy)
            command = ("-m", "fedlora_cli", "worker", "enroll", str(file), "--out", str(own))
            asker = await asyncio.create_subprocess_exec(sys.executable, *command)
            assert await asker.wait() == -signal.SIGKILL
            assert servicer.calls == 1
            await asyncio.to_thread(enrol, lossy, own)
        assert sorted(file.name for file in own.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
        await registers(served, own, "w-1")


async def test_a_key_that_was_not_certified_serves_no_other_invitation(federation, tmp_path: Path):
    own = tmp_path / "own"
    async with enrolling(federation, tmp_path) as served:
        refused = replace(await invited(served, federation), join_token="unknown")
        with pytest.raises(FedLoraError, match="not authenticated"):
            await asyncio.to_thread(enrol, refused, own)
        (left,) = (file.read_bytes() for file in own.iterdir())
        await asyncio.to_thread(enrol, await invited(served, federation), own)
        assert (own / "tls.key").read_bytes() != left
        assert sorted(file.name for file in own.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
