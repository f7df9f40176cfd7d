"""`fedlora create` and `fedlora stop`: runs of an aggregator that is already there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora_cli.commands.options import DEFAULT_SERVER, OverridesOption, ServerOption

__all__ = ["create", "stop"]


def create(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="Describes the run.")],
    server: ServerOption = DEFAULT_SERVER,
    overrides: OverridesOption = None,
) -> None:
    """Create the run that CONFIG describes on an aggregator, and start it.

    Doing so again with the same configuration changes nothing.
    """
    from fedlora_cli.configuration import load
    from fedlora_cli.connection import connect
    from fedlora_cli.console import output

    spec = load(config_file, overrides or ()).need_run()
    with connect(server) as client:
        run = client.create_run(spec, start=True)
    output().print(f"{run.spec.name} ({run.run_id}) is {run.phase.value}", highlight=False)


def stop(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or id of the run.")],
    reason: Annotated[str, typer.Option(help="Why; workers and reports show it.")] = "stopped",
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """End a run; what it has published stays."""
    from fedlora_cli.connection import connect
    from fedlora_cli.console import output

    with connect(server) as client:
        stopped = client.stop_run(run, reason)
    output().print(f"{stopped.spec.name} is {stopped.phase.value}", highlight=False)
