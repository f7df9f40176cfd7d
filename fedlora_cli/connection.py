"""How commands reach an aggregator: what `fedlora --identity-dir` and its fellows say."""

from __future__ import annotations

from contextvars import ContextVar

from fedlora.rpc.security import PLAIN_TEXT, ClientSecurity
from fedlora_cli.admin_client import AdminClient

__all__ = ["SECURITY", "connect"]

SECURITY: ContextVar[ClientSecurity] = ContextVar("security", default=PLAIN_TEXT)
"""what the command line was given to show"""


def connect(address: str) -> AdminClient:
    """A connection to `host:port` with what the command line was given to show."""
    return AdminClient(address, SECURITY.get())
