"""Members outside of a cluster reach the aggregator through a gateway that cannot look inside."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from support.federation import Served, serving
from support.identities import Federation, channel_of
from support.runs import run_spec
from support.sni_gateway import SniGateway

from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc

HOST = "localhost"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "federation")


async def test_a_worker_is_known_by_its_own_certificate_behind_the_gateway(
    federation: Federation, tmp_path: Path
) -> None:
    settings = {"identity_dir": federation.server()}
    async with (
        serving(tmp_path, run_spec(num_workers=1), **settings) as served,
        SniGateway({HOST: served.aggregator.address}) as gateway,
    ):
        outside = f"{HOST}:{gateway.port}"
        async with channel_of(federation.member(AccessRole.WORKER, "w-1"), outside) as channel:
            worker = await Served(channel, outside).worker("w-1")
            assert worker.name == "w-1"
        assert gateway.passed
        observer = federation.member(AccessRole.OBSERVER, "o")
        async with channel_of(observer, outside) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            runs = await stub.ListRuns(admin_pb2.ListRunsRequest(), timeout=10)
        assert [w.name for run in runs.runs for w in run.workers] == ["w-1"]


async def test_nobody_gets_in_for_having_come_through_the_gateway(
    federation: Federation, tmp_path: Path
) -> None:
    settings = {"identity_dir": federation.server()}
    async with (
        serving(tmp_path, run_spec(num_workers=1), **settings) as served,
        SniGateway({HOST: served.aggregator.address}) as gateway,
    ):
        authorities = (federation.authority_dir / "ca.crt").read_bytes()
        nobody = grpc.ssl_channel_credentials(authorities)
        async with grpc.aio.secure_channel(f"{HOST}:{gateway.port}", nobody) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ListRuns(admin_pb2.ListRunsRequest(), timeout=10)
        assert set(gateway.passed) == {HOST}


async def test_a_host_without_a_route_is_turned_away(
    federation: Federation, tmp_path: Path
) -> None:
    settings = {"identity_dir": federation.server()}
    async with (
        serving(tmp_path, run_spec(num_workers=1), **settings) as served,
        SniGateway({"fedlora.example.org": served.aggregator.address}) as gateway,
    ):
        operator = federation.member(AccessRole.OPERATOR, "operator")
        async with channel_of(operator, f"{HOST}:{gateway.port}") as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ListRuns(admin_pb2.ListRunsRequest(), timeout=10)
        assert gateway.passed == []
