"""How commands reach an aggregator: what `fedlora --identity-dir` and its fellows say."""

from __future__ import annotations

import click

from fedlora.rpc.security import ClientSecurity
from fedlora_cli.admin_client import AdminClient

__all__ = ["connect", "security"]


def connect(address: str) -> AdminClient:
    """A connection to `host:port` with what the command line was given to show."""
    return AdminClient(address, security())


def security() -> ClientSecurity:
    """What the command line was given to show."""
    found = click.get_current_context().find_object(ClientSecurity)
    return found or ClientSecurity()
