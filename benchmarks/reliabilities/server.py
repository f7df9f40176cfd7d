"""A real server process, and workers that say what a measurement needs of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from fedlora.adapters.spec import AdapterLayout
from fedlora.proto.v1 import adapter_pb2, federation_pb2, federation_pb2_grpc
from fedlora.rpc.channel import client_options
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities
from fedlora.wire.convert import to_message
from fedlora_cli.admin_client import AdminClient

__all__ = ["Joined", "Server", "join", "server"]


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves."""

    address: str
    process: psutil.Process
    state_dir: Path

    def cpu_seconds(self) -> float:
        """CPU time that it has taken, in all threads."""
        times = self.process.cpu_times()
        return times.user + times.system


@contextmanager
def server(folder: Path, spec: RunSpec) -> Iterator[Server]:
    """`python -m aggregator_service` on a free port, with a run that has been started.

    Workers are not missed: a measurement may leave them silent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "address"
    port_file.unlink(missing_ok=True)
    settings = {
        "ADDRESS": "127.0.0.1:0",
        "STATE_DIR": folder / "state",
        "EXPORT_DIR": folder / "runs",
        "PORT_FILE": port_file,
        "DEVICE": "cpu",
        "WORKER_TIMEOUT_SECONDS": 3600,
    }
    environment = {**os.environ, **{f"FEDLORA_SERVER__{k}": str(v) for k, v in settings.items()}}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "aggregator_service"], env=environment, stdout=log, stderr=log
        )
    try:
        while not port_file.exists():
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.01)
        address = port_file.read_text()
        with AdminClient(address) as client:
            client.create_run(spec, start=True)
        yield Server(address, psutil.Process(process.pid), folder / "state")
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker that is ready."""

    name: str
    channel: grpc.aio.Channel
    stub: federation_pb2_grpc.FederationServiceStub
    token: str
    run_id: str


async def join(address: str, name: str, layout: AdapterLayout) -> Joined:
    """A worker with a connection of its own."""
    options = [*client_options(), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(address, options=options)
    stub = federation_pb2_grpc.FederationServiceStub(channel)
    answer = await stub.Register(
        federation_pb2.RegisterRequest(
            worker_name=name,
            instance_id="1",
            capabilities=to_message(Capabilities(), federation_pb2.Capabilities),
        ),
        timeout=60,
    )
    await stub.ConfirmAdapter(
        federation_pb2.ConfirmAdapterRequest(
            session_token=answer.session_token,
            layout=to_message(layout, adapter_pb2.AdapterLayout),
        ),
        timeout=60,
    )
    return Joined(name, channel, stub, answer.session_token, answer.run_id)
