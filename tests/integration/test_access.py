"""Who may call what: every RPC there is, by every role and under every name."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from safetensors.torch import load, save
from support.every_method import GUARDED, METHODS, REFLECTION, call, refused, request_of
from support.federation import random_adapter, reason_of, upload
from support.proofs import Proofs, dial, scripted, secured
from support.waiting import until

from aggregator_service.transport.access_table import ROLES
from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc, identity_pb2

MEMBERS = (AccessRole.WORKER, AccessRole.OPERATOR, AccessRole.OBSERVER)


def test_the_table_has_every_method_there_is_and_no_other():
    assert set(ROLES) == set(METHODS)


async def test_a_member_does_what_its_role_may_do(proofs: Proofs, tmp_path: Path):
    one = proofs.of(AccessRole.WORKER, "w-1")
    async with secured(proofs, tmp_path) as served:
        async with scripted(one, served, "w-1") as worker:
            task = await worker.task()
            await worker.push(task, random_adapter(4, seed=0), num_examples=0)
        runs = await served.admin.ListRuns(admin_pb2.ListRunsRequest(), timeout=10)
        assert [w.num_updates for r in runs.runs for w in r.workers] == [0]
        assert runs.runs[0].adapter_version == 0, "the first adapter was taken"


async def test_a_role_may_call_what_the_table_says_and_nothing_else(proofs: Proofs, tmp_path: Path):
    members = {role: proofs.of(role, "somebody") for role in MEMBERS}
    async with secured(proofs, tmp_path) as served:
        for role, credentials in members.items():
            others = [m for m in GUARDED if role not in (ROLES[m] or ())]
            assert others
            async with dial(credentials, served.aggregator.address) as channel:
                for method in others:
                    error = await refused(channel, method)
                    assert error.code() is grpc.StatusCode.PERMISSION_DENIED, (role, method)
                    name = method.rsplit("/", 1)[1]
                    assert error.details() == f"the role {role.value} may not call {name}"


async def test_a_member_is_told_by_reflection_what_the_table_names(proofs: Proofs, tmp_path: Path):
    members = [proofs.of(role, "somebody") for role in MEMBERS]
    wanted = reflection_pb2.ServerReflectionRequest(list_services="*")
    async with secured(proofs, tmp_path) as served:
        for credentials in members:
            async with dial(credentials, served.aggregator.address) as channel:
                answer = await call(channel, REFLECTION, wanted)
            told = {service.name for service in answer.list_services_response.service}
            assert told == {m.split("/")[1] for m in METHODS if "EnrolmentService" not in m}


async def test_a_worker_acts_as_itself_only(proofs: Proofs, tmp_path: Path):
    one, two = (proofs.of(AccessRole.WORKER, name) for name in ("w-1", "w-2"))
    async with secured(proofs, tmp_path) as served, scripted(two, served, "w-2") as other:
        task = await other.task()
        async with dial(one, served.aggregator.address) as channel:
            mine = [m for m in GUARDED if ROLES[m] == {AccessRole.WORKER}]
            assert len(mine) == 11
            for method in mine:
                # Of a session that is, and of one that never was: the same answer.
                for token in (other.token, f"1/{'x' * 32}/nothing-00000000/w-2"):
                    request: Message = request_of(method, token=token, name="w-2")
                    error = await refused(channel, method, request)
                    assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method
                    assert "acts for another worker" in (error.details() or "")
        # Nothing of it had any effect.
        await other.push(task, random_adapter(4, seed=0), num_examples=0)


async def test_an_upload_ends_when_its_worker_is_revoked(proofs: Proofs, tmp_path: Path):
    one, uploads = proofs.of(AccessRole.WORKER, "w-1"), tmp_path / "state" / "uploads"
    async with secured(proofs, tmp_path) as served, scripted(one, served, "w-1") as worker:
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


async def test_who_watches_is_cut_off_when_revoked(proofs: Proofs, tmp_path: Path):
    watcher = proofs.of(AccessRole.OBSERVER, "watcher")
    worker = proofs.of(AccessRole.WORKER, "w-1")
    async with (
        secured(proofs, tmp_path) as served,
        dial(watcher, served.aggregator.address) as channel,
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
