"""`fedlora serve`: an aggregator in this process."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlora_cli.commands.options import ConfigFileArgument, OverridesOption

__all__ = ["serve"]


def serve(
    config_file: ConfigFileArgument = None,
    address: Annotated[
        str | None, typer.Option(help="host:port to serve on; the same as server.address.")
    ] = None,
    overrides: OverridesOption = None,
) -> None:
    """Serve a federation until a signal comes.

    The run that the configuration describes is created and started if it is not there; without a
    section [run] the stored runs are served and new ones come from `fedlora create`. SIGTERM stops
    in good order; started again, it goes on where it was.
    """
    import asyncio

    from fedlora.telemetry import configure_logging
    from fedlora_cli.configuration import load, need_service

    need_service("aggregator_service", "aggregator")
    from aggregator_service.app import serve as serve_aggregator
    from aggregator_service.config import AggregatorConfig

    flags = list(overrides or ())
    if address is not None:
        flags.append(f"server.address={address}")
    config = load(config_file, flags)
    configure_logging()
    settings = config.build("server", AggregatorConfig)
    raise typer.Exit(asyncio.run(serve_aggregator(settings, config.run)))
