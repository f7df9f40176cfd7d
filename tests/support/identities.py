"""A federation's authority and members, made in a moment."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from fedlora.identity.certificates import Authority, new_authority, new_key, to_pem
from fedlora.identity.folder import read_identity, write_authority, write_identity
from fedlora.identity.names import AccessRole, Identity
from fedlora.rpc.channel import client_options

LOCAL = ("127.0.0.1", "localhost")


def moment(seconds: float) -> dt.datetime:
    """Now, and so many seconds later."""
    return dt.datetime.fromtimestamp(int(time.time() + seconds), dt.UTC)


class Federation:
    """An authority, and identity folders that it signs, below a folder.

    Args:
        root: gets the folders.
        name: of the federation.
    """

    def __init__(self, root: Path, name: str = "lab") -> None:
        self.root = root
        self.authority: Authority = new_authority(name, now=moment(-3600), days=30)
        write_authority(root / "authority", self.authority)

    @property
    def authority_dir(self) -> Path:
        return self.root / "authority"

    def member(
        self,
        role: AccessRole,
        name: str,
        *,
        hosts: Sequence[str] = (),
        begins: float = -60.0,
        days: float = 1.0,
        folder: str = "",
    ) -> Path:
        """An identity folder; `begins` is in seconds from now."""
        key, identity = (
            new_key(),
            Identity(federation=self.authority.federation, role=role, name=name),
        )
        certificate = self.authority.issue(
            identity, key.public_key(), now=moment(begins), days=days, hosts=hosts
        )
        place = self.root / (folder or f"{role.value}-{name}")
        write_identity(
            place,
            authorities_pem=to_pem(self.authority.certificate),
            certificates_pem=to_pem(certificate),
            key=key,
        )
        return place

    def server(self) -> Path:
        """A server's identity for loopback."""
        return self.member(AccessRole.SERVER, "aggregator", hosts=LOCAL)


def channel_of(folder: Path, address: str) -> grpc.aio.Channel:
    """An asyncio channel of a member."""
    return grpc.aio.secure_channel(address, credentials_of(folder), options=client_options())


def credentials_of(folder: Path) -> grpc.ChannelCredentials:
    """Whatever is in the folder, good or not."""
    return grpc.ssl_channel_credentials(
        (folder / "ca.crt").read_bytes(),
        (folder / "tls.key").read_bytes(),
        (folder / "tls.crt").read_bytes(),
    )


def names(folder: Path) -> Identity:
    """Who a folder says it is."""
    return read_identity(folder, now=time.time()).identity
