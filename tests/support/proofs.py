"""What callers prove who they are with: one test runs over certificates and bearer tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import grpc
from support.federation import ScriptedWorker, Served, serving
from support.identities import Federation, credentials_of
from support.runs import run_spec

from fedlora.identity.bearer import add_bearer_token
from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2_grpc
from fedlora.rpc.channel import client_options

__all__ = ["BearerTokens", "Certificates", "Proofs", "dial", "scripted", "secured"]

DAY = 86400.0
AGE = 60.0
"""of everything issued here: what is issued in the second of its revocation may be newer"""


class Proofs(Protocol):
    """Members of one server, and whom it has to take for nobody."""

    federation: Federation
    settings: Mapping[str, Any]
    """of the server"""

    def of(
        self, role: AccessRole, name: str, *, seconds: float = 3600.0
    ) -> grpc.ChannelCredentials:
        """What a member shows, which is good for so many seconds from now."""
        ...

    def outsiders(self) -> Mapping[str, grpc.ChannelCredentials]:
        """Whom the handshake lets in and the server does not know, by what is wrong with them."""
        ...


class Certificates:
    """Mutual TLS.

    Args:
        root: gets an authority and identity folders.
    """

    def __init__(self, root: Path) -> None:
        self.federation = Federation(root / "federation")
        self.settings = {"identity_dir": self.federation.server()}

    def of(
        self, role: AccessRole, name: str, *, seconds: float = 3600.0
    ) -> grpc.ChannelCredentials:
        """See Proofs."""
        days = (AGE + seconds) / DAY
        return credentials_of(self.federation.member(role, name, begins=-AGE, days=days))

    def outsiders(self) -> Mapping[str, grpc.ChannelCredentials]:
        """See Proofs."""
        other = Federation(self.federation.root / "other")
        other.authority = replace(self.federation.authority, federation="other")
        member = other.member(AccessRole.WORKER, "w-1")
        return {"the authority's, of another federation": credentials_of(member)}


class BearerTokens:
    """Tokens over TLS that asks for no certificates.

    Args:
        root: gets an authority, and a file of tokens.
    """

    def __init__(self, root: Path) -> None:
        self.federation = Federation(root / "federation")
        self.file = root / "tokens"
        self.file.touch()
        self.settings = {"identity_dir": self.federation.server(), "tokens_file": self.file}

    def of(
        self, role: AccessRole, name: str, *, seconds: float = 3600.0
    ) -> grpc.ChannelCredentials:
        """See Proofs; a server that is up takes a second to read a new token."""
        return self._bearing(self._token(self.file, role, name, seconds))

    def outsiders(self) -> Mapping[str, grpc.ChannelCredentials]:
        """See Proofs."""
        worker = (AccessRole.WORKER, "w-1")
        stranger = Federation(self.federation.root / "stranger").member(*worker)
        (stranger / "ca.crt").write_bytes(self._authorities)
        elsewhere = self._token(self.file.with_name("elsewhere"), *worker, 3600.0)
        return {
            "nobody": grpc.ssl_channel_credentials(self._authorities),
            "of an unknown authority": credentials_of(stranger),
            "certified, without a token": credentials_of(self.federation.member(*worker)),
            "an unknown token": self._bearing("x" * 43),
            "another federation's token": self._bearing(elsewhere),
            "expired": self.of(*worker, seconds=-5.0),
        }

    @property
    def _authorities(self) -> bytes:
        return (self.federation.authority_dir / "ca.crt").read_bytes()

    def _bearing(self, token: str) -> grpc.ChannelCredentials:
        return grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self._authorities),
            grpc.access_token_call_credentials(token),
        )

    def _token(self, file: Path, role: AccessRole, name: str, seconds: float) -> str:
        now = time.time()
        return add_bearer_token(file, role, name, issued_at=now - AGE, expires_at=now + seconds)


def dial(credentials: grpc.ChannelCredentials, address: str) -> grpc.aio.Channel:
    """An asyncio channel of whoever shows these."""
    return grpc.aio.secure_channel(address, credentials, options=client_options())


@asynccontextmanager
async def secured(proofs: Proofs, tmp_path: Path, **settings: Any) -> AsyncIterator[Served]:
    """A server of everything there is, that knows the members, and an operator's channel to it."""
    operator = proofs.of(AccessRole.OPERATOR, "operator")
    settings = {"reflection": True, **proofs.settings, **settings}
    async with (
        serving(tmp_path, run_spec(num_workers=1), **settings) as served,
        dial(operator, served.aggregator.address) as channel,
    ):
        served.admin = admin_pb2_grpc.AdminServiceStub(channel)
        yield served


@asynccontextmanager
async def scripted(
    worker: grpc.ChannelCredentials, served: Served, name: str
) -> AsyncIterator[ScriptedWorker]:
    """A worker, registered and confirmed, of whoever shows these."""
    address = served.aggregator.address
    async with dial(worker, address) as channel:
        yield await Served(channel, address).worker(name)
