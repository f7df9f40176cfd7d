"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DEFAULT_SERVER", "ConfigFileArgument", "EventsJsonOption", "JsonOption"]
__all__ += ["OverridesOption", "PlainOption", "ServerOption"]

DEFAULT_SERVER = "127.0.0.1:8400"
"""where an aggregator serves unless told otherwise"""

ServerOption = Annotated[str, typer.Option("--server", help="host:port of the aggregator.")]

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]

ConfigFileArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="Configuration. Default: FEDLORA_CONFIG, or none."),
]

OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set a key; may be repeated."),
]

PlainOption = Annotated[bool, typer.Option("--plain", help="Lines instead of a live display.")]

EventsJsonOption = Annotated[
    bool, typer.Option("--json", help="Every event as a line of JSON on standard output.")
]
