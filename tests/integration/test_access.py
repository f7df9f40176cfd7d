"""Who may call what: every RPC there is, as everybody who should not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from safetensors.torch import load, save
from support.federation import ScriptedWorker, Served, random_adapter, reason_of, serving, upload
from support.identities import Federation, channel_of
from support.runs import LAYOUT, run_spec
from support.waiting import until

from aggregator_service.transport.access_table import ANYONE, ROLES
from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import adapter_pb2, admin_pb2, admin_pb2_grpc, federation_pb2, identity_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.wire.convert import to_message

FILES = (federation_pb2, admin_pb2, identity_pb2, health_pb2, reflection_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ON_THE_MAIN_PORT = [m for m in METHODS if "EnrolmentService" not in m and "reflection" not in m]
GUARDED = [m for m in ON_THE_MAIN_PORT if ROLES[m] is not ANYONE]


@asynccontextmanager
async def secured(federation: Federation, tmp_path: Path, **settings: Any) -> AsyncIterator[Served]:
    """A server that knows the federation's members, and an operator's channel to it."""
    settings = {"identity_dir": federation.server(), **settings}
    async with serving(tmp_path, run_spec(num_workers=1), **settings) as served:
        operator = federation.member(AccessRole.OPERATOR, "operator")
        async with channel_of(operator, served.aggregator.address) as channel:
            served.admin = admin_pb2_grpc.AdminServiceStub(channel)
            yield served


@asynccontextmanager
async def scripted(folder: Path, served: Served, name: str) -> AsyncIterator[ScriptedWorker]:
    """A worker with an identity, registered and confirmed."""
    async with channel_of(folder, served.aggregator.address) as channel:
        yield await Served(channel, served.aggregator.address).worker(name)


async def call(channel: grpc.aio.Channel, path: str, request: Any, *, wait: float = 10.0) -> None:
    """Calls a method with one request, and waits for its first answer."""
    method = METHODS[path]
    kinds: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    rpc = kinds[method.client_streaming, method.server_streaming](
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    answer = rpc(iter([request]) if method.client_streaming else request, timeout=wait)
    if method.server_streaming:
        await anext(aiter(answer), None)
        answer.cancel()
    else:
        await answer


def request_of(path: str, *, token: str = "", name: str = "w-1") -> Any:
    """A request of the method, of whoever has the token and name."""
    request = GetMessageClass(METHODS[path].input_type)()
    if isinstance(request, pb.RegisterRequest):
        request.worker_name, request.instance_id = name, "instance-1"
        request.capabilities.role = pb.ROLE_PARTY
    elif isinstance(request, pb.PushUpdateRequest):
        request.header.session_token = token
        request.header.manifest.SetInParent()
    elif "session_token" in request.DESCRIPTOR.fields_by_name:
        request.session_token = token
    if isinstance(request, pb.ConfirmAdapterRequest):
        request.layout.CopyFrom(to_message(LAYOUT, adapter_pb2.AdapterLayout))
    if isinstance(request, pb.ReportMetricsRequest):
        request.progress.SetInParent()
    return request


async def refused(channel: grpc.aio.Channel, path: str, request: Any) -> tuple[Any, str]:
    """Status code and text of a call that must fail."""
    while True:
        try:
            await call(channel, path, request)
        except grpc.aio.AioRpcError as error:
            # A write on a stream that has ended hides its answer now and then.
            if error.code() is not grpc.StatusCode.INTERNAL:
                return error.code(), error.details() or ""
        else:
            raise AssertionError(f"{path} was answered")


def test_the_table_has_every_method_there_is_and_no_other():
    assert set(ROLES) == set(METHODS)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("federation"))


async def test_a_member_does_what_its_role_may_do(federation, tmp_path: Path):
    folder = federation.member(AccessRole.WORKER, "w-1")
    async with secured(federation, tmp_path) as served:
        async with scripted(folder, served, "w-1") as worker:
            task = await worker.task()
            await worker.push(task, random_adapter(4, seed=0), num_examples=0)
        runs = await served.admin.ListRuns(admin_pb2.ListRunsRequest(), timeout=10)
        assert [w.num_updates for r in runs.runs for w in r.workers] == [0]
        assert runs.runs[0].adapter_version == 0, "the first adapter was taken"


@pytest.mark.parametrize("who", ["nobody", "plain", "expired", "stranger"])
async def test_the_handshake_refuses_whom_the_authority_has_not_certified(
    federation, tmp_path: Path, who: str
):
    stranger = Federation(tmp_path / "other")
    folders = {
        "expired": federation.member(AccessRole.WORKER, "w-1", begins=-7200, days=1 / 24),
        "stranger": stranger.member(AccessRole.WORKER, "w-1"),
    }
    if who in folders:
        # The stranger knows the server: only the server does not know him.
        (folders[who] / "ca.crt").write_bytes((federation.authority_dir / "ca.crt").read_bytes())
    async with secured(federation, tmp_path) as served:
        address = served.aggregator.address
        authorities = (federation.authority_dir / "ca.crt").read_bytes()
        channels = {
            "nobody": lambda: grpc.aio.secure_channel(
                address, grpc.ssl_channel_credentials(authorities)
            ),
            "plain": lambda: grpc.aio.insecure_channel(address),
        }
        dial = channels.get(who) or (lambda: channel_of(folders[who], address))
        async with dial() as channel:
            codes = {(await refused(channel, m, request_of(m)))[0] for m in ON_THE_MAIN_PORT}
        assert codes == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("role", [AccessRole.WORKER, AccessRole.OPERATOR, AccessRole.OBSERVER])
async def test_a_role_may_call_what_the_table_says_and_nothing_else(
    federation, tmp_path: Path, role: AccessRole
):
    folder = federation.member(role, "somebody")
    others = [m for m in GUARDED if role not in (ROLES[m] or ())]
    assert others
    async with (
        secured(federation, tmp_path) as served,
        channel_of(folder, served.aggregator.address) as channel,
    ):
        for method in others:
            code, text = await refused(channel, method, request_of(method))
            assert code is grpc.StatusCode.PERMISSION_DENIED, method
            assert text == f"the role {role.value} may not call {method.rsplit('/', 1)[1]}"


async def test_one_that_is_revoked_may_call_nothing_on_a_standing_connection(
    federation, tmp_path: Path
):
    folders = {
        role: federation.member(role, "gone")
        for role in (AccessRole.WORKER, AccessRole.OPERATOR, AccessRole.OBSERVER)
    }
    async with secured(federation, tmp_path) as served:
        for role, folder in folders.items():
            async with channel_of(folder, served.aggregator.address) as channel:
                await call(channel, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
                wire = admin_pb2.RevokeRequest(name="gone")
                wire.role = identity_pb2.AccessRole.Value(f"ACCESS_ROLE_{role.name}")
                await served.admin.Revoke(wire, timeout=10)
                for method in GUARDED:
                    code, text = await refused(channel, method, request_of(method))
                    assert code is grpc.StatusCode.UNAUTHENTICATED, method
                    assert text.startswith("not authenticated"), text


async def test_a_worker_acts_as_itself_only(federation, tmp_path: Path):
    one, two = (federation.member(AccessRole.WORKER, name) for name in ("w-1", "w-2"))
    async with secured(federation, tmp_path) as served, scripted(two, served, "w-2") as other:
        task = await other.task()
        address = served.aggregator.address
        async with channel_of(one, address) as channel:
            mine = [m for m in GUARDED if ROLES[m] == {AccessRole.WORKER}]
            assert len(mine) == 11
            for method in mine:
                # Of a session that is, and of one that never was: the same answer.
                for token in (other.token, f"1/{'x' * 32}/nothing-00000000/w-2"):
                    request = request_of(method, token=token, name="w-2")
                    code, text = await refused(channel, method, request)
                    assert code is grpc.StatusCode.PERMISSION_DENIED, method
                    assert "acts for another worker" in text
        # Nothing of it had any effect.
        await other.push(task, random_adapter(4, seed=0), num_examples=0)


async def test_an_upload_ends_when_its_worker_is_revoked(federation, tmp_path: Path):
    folder, uploads = federation.member(AccessRole.WORKER, "w-1"), tmp_path / "state" / "uploads"
    async with secured(federation, tmp_path) as served, scripted(folder, served, "w-1") as worker:
        task = await worker.task()
        data = save(random_adapter(4, seed=0))
        header = worker.header(task, load(data), data, num_examples=0)
        messages = upload(header, data)
        push = worker.stub.PushUpdate(timeout=60)
        for message in messages[:3]:
            await push.write(message)
        await until(lambda: any(p.stat().st_size for p in uploads.iterdir()))
        role = identity_pb2.ACCESS_ROLE_WORKER
        await served.admin.Revoke(admin_pb2.RevokeRequest(role=role, name="w-1"), timeout=10)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages[3:]:
                await push.write(message)
        assert await push.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL)
        run = await served.admin.GetRun(admin_pb2.GetRunRequest(run="test"), timeout=10)
        assert not run.run.HasField("adapter_version")


async def test_who_watches_is_cut_off_when_revoked(federation, tmp_path: Path):
    watcher = federation.member(AccessRole.OBSERVER, "watcher")
    worker = federation.member(AccessRole.WORKER, "w-1")
    async with (
        secured(federation, tmp_path) as served,
        channel_of(watcher, served.aggregator.address) as channel,
    ):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        events = aiter(stub.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True)))
        await anext(events)
        role = identity_pb2.ACCESS_ROLE_OBSERVER
        await served.admin.Revoke(admin_pb2.RevokeRequest(role=role, name="watcher"), timeout=10)
        async with scripted(worker, served, "w-1"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in events:
                    pass
        assert reason_of(caught.value) == "UNAUTHENTICATED"


async def test_plain_health_checks_are_answered_beside_and_nothing_else_is(
    federation, tmp_path: Path
):
    async with secured(federation, tmp_path, health_address="127.0.0.1:0") as served:
        async with grpc.aio.insecure_channel(served.aggregator.health_address) as channel:
            await call(channel, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
            codes = {
                (await refused(channel, m, request_of(m)))[0] for m in METHODS if "fedlora" in m
            }
        assert codes == {grpc.StatusCode.UNIMPLEMENTED}
