"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["DEFAULT_SERVER", "JsonOption", "ServerOption"]

DEFAULT_SERVER = "127.0.0.1:8400"
"""where an aggregator serves unless told otherwise"""

ServerOption = Annotated[str, typer.Option("--server", help="host:port of the aggregator.")]

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
