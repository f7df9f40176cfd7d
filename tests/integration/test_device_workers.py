"""`fedlora workers` on GPUs that are not there: real processes, locks, signals and a real server.

NVML and CUDA are stood in for at their boundary (`support.nvml`, `support.gpu_worker`).
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil
from rich.console import Console
from support import nvml
from support.federation import connected
from support.nvml import Gpu, StandInNvml
from support.processes import ServerProcess, free_address
from support.runs import run_spec
from support.waiting import until

from fedlora.devices import NvmlDevices, device_lock
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import admin_pb2
from fedlora_cli.configuration import load
from fedlora_cli.device_choice import select_places
from fedlora_cli.device_workers import DeviceWorkers

SCRIPT = Path(__file__).parents[1] / "support" / "device_workers_process.py"

GPUS = [Gpu(uuid=f"GPU-{digit * 8}-0000") for digit in "abc"]
NAMES = [f"node-{gpu.uuid[:12]}" for gpu in GPUS]


class Host:
    """The workers of one machine: their supervisor, and what each has logged."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._folder = folder

    def events(self, name: str, event: str = "") -> list[dict[str, object]]:
        """Lines of a worker's log; all its processes write to the same one."""
        file = self._folder / f"{name}.log"
        text = file.read_text() if file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in lines if event in ("", line["event"])]

    def worker(self, name: str) -> psutil.Process:
        """The process of a worker."""
        (found,) = (
            child
            for child in psutil.Process(self.process.pid).children()
            if child.environ().get("FEDLORA_WORKER__NAME") == name
        )
        return found


@contextmanager
def host(
    folder: Path,
    devices: str,
    *,
    server: str = "127.0.0.1:1",
    identities: Path | None = None,
    **variables: str,
) -> Iterator[Host]:
    """The supervisor of some devices of a machine with `GPUS`."""
    given = nvml.environment(GPUS)
    given_identities = [identities] if identities else []
    tests = str(SCRIPT.parents[1])
    environment = {
        **os.environ,
        **given,
        "PYTHONPATH": os.pathsep.join([given["PYTHONPATH"], tests]),
        "OMP_NUM_THREADS": "1",
        "FEDLORA_LOG_FORMAT": "json",
        "FEDLORA_WORKER__SERVER": server,
        "FEDLORA_WORKER__DEVICE_LOCK_DIR": str(folder / "locks"),
        "FEDLORA_DATA__PATH": "unused",
        **variables,
    }
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), devices, str(folder / "logs"), *map(str, given_identities)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as process:
        try:
            yield Host(folder / "logs", process)
        finally:
            process.kill()


async def test_each_device_gets_a_worker_of_its_own_and_its_share_of_the_data(tmp_path):
    spec = run_spec(num_rounds=1, num_workers=3, slots=3)
    with ServerProcess(tmp_path / "server", spec) as server:
        # In an order of their own: a share belongs to the device and not to who comes first.
        with host(tmp_path, "2,0,1", server=server.address) as workers:
            _, said = workers.process.communicate(timeout=120)
        async with connected(server.address) as served:
            run = (await served.admin.GetRun(admin_pb2.GetRunRequest(run=spec.name))).run
    assert workers.process.returncode == 0, said
    found = {w.name: w for w in run.workers}
    assert sorted(found) == NAMES
    for index, (name, gpu) in enumerate(zip(NAMES, GPUS, strict=True)):
        assert found[name].capabilities.device_uuid == gpu.uuid
        assert found[name].data_slot == index
        assert found[name].num_updates == 1
        (reading, *_) = workers.events(name, "device")
        assert reading["memory_total_bytes"] == gpu.total
        assert (reading["utilisation_percent"], reading["temperature_celsius"]) == (50, 40)
        assert reading["worker"] == name
        assert f"{name} is done" in said


async def test_a_killed_worker_comes_back_on_its_device_and_sigterm_lets_all_leave(tmp_path):
    spec = run_spec(num_workers=3)
    with (
        ServerProcess(tmp_path / "server", spec) as server,
        host(tmp_path, "0,1", server=server.address) as workers,
    ):
        here = NAMES[:2]
        await until(lambda: all(workers.events(n, "ready") for n in here), seconds=90)
        for name, gpu in zip(here, GPUS[:2], strict=True):
            # What its Python began with, before anything could be loaded.
            assert workers.worker(name).environ()["CUDA_VISIBLE_DEVICES"] == gpu.uuid
        workers.worker(here[0]).send_signal(signal.SIGKILL)
        await until(lambda: len(workers.events(here[0], "ready")) == 2, seconds=90)
        assert len(workers.events(here[1], "starting")) == 1
        workers.process.send_signal(signal.SIGTERM)
        _, said = workers.process.communicate(timeout=60)
        assert workers.process.returncode == 0, said
        assert f"{here[0]} was killed by SIGKILL; starting it again in" in said
        for name in here:
            last = workers.events(name)[-1]
            assert (last["event"], last["reason"], last["exit_code"]) == (
                "gone",
                "stopped by SIGTERM",
                0,
            )
        for gpu in GPUS[:2]:
            with device_lock(gpu.uuid, tmp_path / "locks", wait_seconds=0):
                pass


async def test_a_device_that_is_taken_is_refused_and_its_worker_not_started_again(tmp_path):
    with (
        device_lock(GPUS[0].uuid, tmp_path / "locks"),
        host(tmp_path, "0") as workers,
    ):
        _, said = workers.process.communicate(timeout=90)
    assert workers.process.returncode == 6
    (gone,) = workers.events(NAMES[0], "gone")
    assert f"{GPUS[0].uuid} is another worker's" in gone["reason"]
    assert not workers.events(NAMES[0], "starting")
    assert "ended with code 6 (device)" in said
    assert "starting it again" not in said


async def test_workers_that_say_they_share_a_device_are_on_it_together(tmp_path):
    with (
        device_lock(GPUS[0].uuid, tmp_path / "locks", shared=True),
        host(tmp_path, "0", FEDLORA_WORKER__SHARE_DEVICE="true") as workers,
    ):
        await until(lambda: workers.events(NAMES[0], "starting"), seconds=90)


async def test_a_worker_that_sees_another_device_is_refused_and_the_others_go_on(tmp_path):
    with host(tmp_path, "0,1", STAND_IN_CUDA=GPUS[1].uuid) as workers:
        await until(
            lambda: workers.events(NAMES[0], "gone") and workers.events(NAMES[1], "starting"),
            seconds=90,
        )
        (gone,) = workers.events(NAMES[0], "gone")
        assert gone["exit_code"] == 6
        assert f"expected the device {GPUS[0].uuid}, got {GPUS[1].uuid}" in gone["reason"]
        assert workers.worker(NAMES[1]).is_running()
        assert len(workers.events(NAMES[0], "gone")) == 1


async def test_each_worker_proves_its_own_name(tmp_path):
    with host(tmp_path, "0,2", identities=tmp_path / "identities") as workers:
        _, said = workers.process.communicate(timeout=90)
    assert workers.process.returncode == 2, said
    for name in (NAMES[0], NAMES[2]):
        (gone,) = workers.events(name, "gone")
        assert str(tmp_path / "identities" / name) in gone["reason"]


def test_a_terminal_shows_each_worker_and_how_its_device_does(tmp_path, monkeypatch):
    variables = nvml.environment(GPUS) | {
        # Refused, each: the end of the supervisor is then near.
        "STAND_IN_CUDA": "GPU-other",
        "FEDLORA_WORKER__DEVICE_LOCK_DIR": str(tmp_path / "locks"),
        "FEDLORA_DATA__PATH": "unused",
    }
    variables["PYTHONPATH"] += os.pathsep + str(SCRIPT.parents[1])
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    # A dumb terminal, such as many a build server claims to be, shows no table.
    monkeypatch.setenv("TERM", "xterm")
    machine = NvmlDevices(StandInNvml(GPUS, silent={GPUS[1].uuid}))
    screen = io.StringIO()
    pool = DeviceWorkers(
        load(None),
        select_places("0,1", machine, {}),
        devices=machine,
        name_prefix="node",
        log_dir=tmp_path,
        program="support.gpu_worker",
        console=Console(file=screen, force_terminal=True, width=160),
    )
    assert pool.run() == ExitCode.DEVICE
    (reading, *_) = [line for line in screen.getvalue().splitlines() if "runs as" in line]
    assert reading.split()[0] == NAMES[0]
    assert "1.0 / 4.0       50  40" in reading
    (silent, *_) = [line for line in screen.getvalue().splitlines() if f"{NAMES[1]}  1" in line]
    assert silent.split()[-3:] == ["–"] * 3


async def test_a_worker_that_sees_more_than_one_device_is_refused(tmp_path):
    with host(tmp_path, "0", STAND_IN_CUDA=f"{GPUS[0].uuid},{GPUS[1].uuid}") as workers:
        _, said = workers.process.communicate(timeout=90)
    assert workers.process.returncode == 6
    assert f"expected the one device {GPUS[0].uuid}, got 2" in said


def page(address: str) -> str:
    with urlopen(address, timeout=30) as answer:
        return answer.read().decode()


async def test_each_worker_shows_its_own_devices_gauges_at_a_port_of_its_own(tmp_path):
    host_name, port = free_address().rsplit(":", 1)
    spec = run_spec(num_workers=3)
    with (
        ServerProcess(tmp_path / "server", spec) as server,
        host(
            tmp_path,
            "0,1",
            server=server.address,
            FEDLORA_WORKER__METRICS_ADDRESS=f"{host_name}:{port}",
        ) as workers,
    ):
        await until(lambda: all(workers.events(n, "ready") for n in NAMES[:2]), seconds=90)
        for index, gpu in enumerate(GPUS[:2]):
            address = f"http://{host_name}:{int(port) + index}/metrics"
            text = await asyncio.to_thread(page, address)
            assert f'fedlora_device_memory_total_bytes{{device="{gpu.uuid}"}} 4.2949' in text
            assert GPUS[1 - index].uuid not in text
