"""`fedlora worker` and `fedlora workers`: one worker in this process, or one per device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora_cli.commands.options import ConfigFileArgument, OverridesOption

__all__ = ["worker", "workers"]

_Server = Annotated[
    str | None, typer.Option(help="host:port of the aggregator; the same as worker.server.")
]


def worker(
    config_file: ConfigFileArgument = None,
    server: _Server = None,
    name: Annotated[
        str | None,
        typer.Option(help="A name it keeps over restarts. Default: host name and device."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda:N or cuda:GPU-UUID.")] = None,
    overrides: OverridesOption = None,
) -> None:
    """Train for a federation until its run is over, on one device.

    SIGTERM leaves in good order. Exit codes: 0 the run is over, 2 something to correct here, 3
    refused by the server, 4 server unreachable, 5 a newer process has this name, 6 the device.
    """
    from fedlora.telemetry import configure_logging
    from fedlora_cli.configuration import load, need_service

    need_service("client_worker", "worker")
    from client_worker.app import run_worker
    from client_worker.config import WorkerConfig
    from client_worker.data.config import DataConfig

    given = {"server": server, "name": name, "device": device}
    flags = [f"worker.{key}={value}" for key, value in given.items() if value is not None]
    config = load(config_file, [*(overrides or ()), *flags])
    configure_logging()
    settings = config.build("worker", WorkerConfig, data=config.build("data", DataConfig))
    raise typer.Exit(run_worker(settings))


def workers(
    config_file: ConfigFileArgument = None,
    devices: Annotated[
        str,
        typer.Option(
            help="all, or a list of numbers, GPU- and MIG-UUIDs as `nvidia-smi -L` shows them, or "
            "cpu. One worker per entry."
        ),
    ] = "all",
    server: _Server = None,
    name: Annotated[
        str | None,
        typer.Option(help="Prefix of the workers' names. Default: the host name."),
    ] = None,
    log_dir: Annotated[Path, typer.Option(help="Where the workers' output goes.")] = Path("logs"),
    identities: Annotated[
        Path | None,
        typer.Option(help="Folder with a folder for each worker's name: its worker.identity_dir."),
    ] = None,
    only_list: Annotated[
        bool, typer.Option("--list", help="Print names, devices and their UUIDs, and end.")
    ] = False,
    overrides: OverridesOption = None,
) -> None:
    """Keep one worker process per device running until the run is over.

    Each sees its own device and no other. A worker that dies is started again after a growing
    pause, one that is refused is not. SIGTERM or Ctrl-C lets all of them leave in good order. A
    terminal shows memory, load and temperature of the devices.
    """
    import socket

    from fedlora.devices import NvmlDevices
    from fedlora_cli.configuration import load, need_service
    from fedlora_cli.device_choice import select_places, worker_names
    from fedlora_cli.device_workers import DeviceWorkers

    need_service("client_worker", "worker")
    flags = list(overrides or ())
    if server is not None:
        flags.append(f"worker.server={server}")
    config = load(config_file, flags)
    machine = NvmlDevices()
    places = select_places(devices, machine)
    prefix = name or socket.gethostname()
    if only_list:
        for worker_name, place in zip(worker_names(prefix, places), places, strict=True):
            print(worker_name, place.device.number if place.device else "-", place.worker_device)
        return
    pool = DeviceWorkers(
        config,
        places,
        devices=machine,
        name_prefix=prefix,
        log_dir=log_dir,
        identities=identities,
    )
    raise typer.Exit(pool.run())
