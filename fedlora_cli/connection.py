"""How commands reach an aggregator: what `fedlora --identity-dir` and its fellows say."""

from __future__ import annotations

from contextvars import ContextVar

from fedlora.rpc.security import PLAIN_TEXT, ClientSecurity
from fedlora_cli.admin_client import AdminClient
from fedlora_cli.console import errors

__all__ = ["SECURITY", "connect"]

SECURITY: ContextVar[ClientSecurity] = ContextVar("security", default=PLAIN_TEXT)
"""what the command line was given to show"""


def connect(address: str) -> AdminClient:
    """A connection to `host:port` with what the command line was given to show.

    Warns on standard error where everybody on the way can read and change what is sent.
    """
    security = SECURITY.get()
    client = AdminClient(address, security)
    if security.is_plain_beyond(address):
        said = f"warning: plain text to {address}: everybody on the way can read and change it"
        errors().print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return client
