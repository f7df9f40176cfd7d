"""docker-compose.yml on a real engine: what it declares, and a federation that runs in it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.compose import FILE, GPU_OVERLAY, Project, inspect, missing_engine, resolved
from support.compose_federation import RUN, federation, wait_for

from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc, run_pb2

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(missing_engine()), reason=f"no Docker engine: {missing_engine()}"),
]


# --- what the files declare ------------------------------------------------------------------


def services(*files: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = resolved(*files)["services"]  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("files", [(FILE,), (FILE, GPU_OVERLAY)], ids=["cpu", "gpu"])
def test_every_service_is_confined(files: tuple[Path, ...]) -> None:
    for name, service in services(*files).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name


@pytest.mark.parametrize("files", [(FILE,), (FILE, GPU_OVERLAY)], ids=["cpu", "gpu"])
def test_no_worker_is_reachable_and_the_others_only_from_this_machine(
    files: tuple[Path, ...],
) -> None:
    published = {
        name: [port["host_ip"] for port in service["ports"]]  # type: ignore[attr-defined]
        for name, service in services(*files).items()
        if "ports" in service
    }
    assert set(published) == {"aggregator", "prometheus", "grafana"}
    assert set().union(*published.values()) == {"127.0.0.1"}
    assert resolved(*files)["networks"]["federation"]["internal"] is True  # type: ignore[index]


def test_plain_compose_asks_for_no_device() -> None:
    for service in services(FILE).values():
        assert "devices" not in json.dumps(service.get("deploy", {}))


def test_each_gpu_worker_has_a_device_and_a_name_of_its_own() -> None:
    found = {n: s for n, s in services(FILE, GPU_OVERLAY).items() if n.startswith("worker-gpu-")}
    devices = {
        name: [
            device_id
            for device in service["deploy"]["resources"]["reservations"]["devices"]  # type: ignore[index]
            for device_id in device["device_ids"]
        ]
        for name, service in found.items()
    }
    assert devices == {"worker-gpu-0": ["0"], "worker-gpu-1": ["1"]}
    names = [service["environment"]["FEDLORA_WORKER__NAME"] for service in found.values()]  # type: ignore[index]
    assert sorted(names) == ["worker-1", "worker-2"]
    for service in found.values():
        assert service["environment"]["FEDLORA_WORKER__DEVICE"] == "cuda:0"  # type: ignore[index]


# --- a federation in containers --------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with federation(tmp_path_factory.mktemp("config")) as project:
        yield project


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_aggregator_is_healthy_and_the_workers_are_confined(project: Project) -> None:
    (aggregator,) = project.containers("aggregator")
    assert inspect(aggregator)["State"]["Health"]["Status"] == "healthy"  # type: ignore[index]
    for service in ("aggregator", "worker"):
        assert project.python(service, "import os; print(os.getuid())") == "10001"
        assert "Read-only file system" in project.python(
            service,
            "try: open('/app/planted', 'w')\nexcept OSError as error: print(error)",
        )
    found = "from importlib.util import find_spec; print([n for n in {} if find_spec(n)])"
    lacks = ["transformers", "peft", "client_worker", "fedlora_cli", "pip"]
    assert project.python("aggregator", found.format(lacks)) == "[]"
    lacks = ["aggregator_service", "fedlora_cli", "grpc_health", "pip"]
    assert project.python("worker", found.format(lacks)) == "[]"
    keys = "import pathlib; print(sorted(map(str, pathlib.Path('/').glob('identit*/**/*.key'))))"
    assert project.python("aggregator", keys) == "['/identity/tls.key']"
    of_workers = project.python("worker", keys)
    assert of_workers.count("/identities/worker-") == of_workers.count(".key") > 0
    reach = (
        "import socket\n"
        "socket.create_connection(('aggregator', 8400), 5).close()\n"
        "try: socket.create_connection(('192.0.2.1', 443), 5)\n"
        "except OSError as error: print(type(error).__name__, error.errno)"
    )
    assert project.python("worker", reach) == "OSError 101"  # network is unreachable


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_who_cannot_prove_a_name_is_not_answered(project: Project) -> None:
    address = project.published("aggregator", 8400)
    authority = (project.operator / "ca.crt").read_bytes()
    for channel in (
        grpc.insecure_channel(address),
        grpc.secure_channel(address, grpc.ssl_channel_credentials(authority)),
    ):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        with channel, pytest.raises(grpc.RpcError) as refusal:
            stub.GetRun(admin_pb2.GetRunRequest(run=RUN), timeout=20)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_worker_comes_back_under_its_name(project: Project) -> None:
    wait_for(project, admin_pb2.EVENT_TYPE_ROUND_COMPLETED)
    victim = project.containers("worker")[0]
    subprocess.run(["docker", "kill", victim], check=True, capture_output=True)
    subprocess.run(["docker", "start", victim], check=True, capture_output=True)
    wait_for(project, admin_pb2.EVENT_TYPE_ROUND_COMPLETED, count=2)
    names = {worker.name for worker in project.run_state(RUN).workers}
    assert names == {"worker-1", "worker-2"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_down_and_up_goes_on_where_it_was_and_a_further_worker_may_join(project: Project) -> None:
    wait_for(project, admin_pb2.EVENT_TYPE_ROUND_COMPLETED, count=2)
    before = project.run_state(RUN)
    project("down", "--timeout", "30")
    project("up", "--detach", "--wait", "--no-build", "--scale", "worker=3", timeout=300)
    after = project.run_state(RUN)
    assert after.run_id == before.run_id
    assert after.adapter_version >= before.adapter_version >= 2
    wait_for(project, admin_pb2.EVENT_TYPE_RUN_COMPLETED)
    names = {worker.name for worker in project.run_state(RUN).workers}
    assert {"worker-1", "worker-2"} <= names <= {"worker-1", "worker-2", "worker-3"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_run_ends_with_a_result_and_the_workers_leave_in_good_order(
    project: Project, tmp_path: Path
) -> None:
    wait_for(project, admin_pb2.EVENT_TYPE_RUN_COMPLETED)
    project("wait", "worker", check=False, timeout=120)
    assert project.run_state(RUN).phase == run_pb2.RUN_PHASE_COMPLETED
    for name in project.containers("worker"):
        assert inspect(name)["State"]["ExitCode"] == 0, name  # type: ignore[index]
    # Stopped first: the server has then written all it is going to write.
    project("stop", timeout=60)
    (aggregator,) = project.containers("aggregator")
    assert inspect(aggregator)["State"]["ExitCode"] == 0  # type: ignore[index]
    project("cp", f"aggregator:/runs/{RUN}", str(tmp_path / RUN))
    final = tmp_path / RUN / "final"
    assert {f.name for f in final.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    rounds = [
        json.loads(line) for line in (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rounds) == 4
    assert (tmp_path / RUN / "report.html").stat().st_size > 1000
