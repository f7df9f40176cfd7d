"""How a client proves who it is and knows whom it talks to; the refusal to do without by accident.

A handshake that fails comes back as UNAVAILABLE, whatever the reason (measured, grpc 1.85.1): all
that can be checked on this side is checked before dialling.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.folder import read_authorities, read_identity, stamp
from fedlora.rpc.channel import client_options

__all__ = ["PLAIN_TEXT", "ClientSecurity", "is_loopback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSecurity:
    """What a client has to show."""

    identity_dir: Path | None = None
    """with ca.crt, tls.crt and tls.key; ca.crt alone beside a token"""
    token_file: Path | None = None
    """holds a bearer token"""
    insecure: bool = False
    """plain text to other machines as well"""

    def dial(self, address: str) -> grpc.Channel:
        """A channel to `host:port`.

        Raises:
            FedLoraError: INVALID_CONFIG for files that are missing or of no use, or for plain
                text to another machine that nobody asked for.
        """
        credentials = self._credentials(address)
        options = client_options()
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    def is_plain_beyond(self, address: str) -> bool:
        """Whether `dial` goes to another machine in plain text, as was asked for by name."""
        plain = self.identity_dir is None and self.token_file is None
        return plain and self.insecure and not is_loopback(address)

    def stamp(self) -> tuple[object, ...]:
        """What changes whenever what is shown does."""
        token = self.token_file.stat().st_mtime_ns if self.token_file else 0
        return (token, *(stamp(self.identity_dir) if self.identity_dir else ()))

    def _credentials(self, address: str) -> grpc.ChannelCredentials | None:
        if self.token_file is not None:
            return grpc.composite_channel_credentials(
                self._transport_below_token(address),
                grpc.access_token_call_credentials(_read_token(self.token_file)),
            )
        if self.identity_dir is not None:
            files = read_identity(self.identity_dir, now=time.time())
            return grpc.ssl_channel_credentials(
                files.authorities_pem, files.key_pem, files.certificates_pem
            )
        if not (self.insecure or is_loopback(address)):
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"{address} is another machine, and there is no identity_dir: everybody on the way "
                "could read and change what is sent",
                hint="Enrol with `fedlora worker enroll` (docs/security.md), or ask for plain text "
                "with insecure = true",
            )
        return None

    def _transport_below_token(self, address: str) -> grpc.ChannelCredentials:
        if self.identity_dir is not None:
            return grpc.ssl_channel_credentials(read_authorities(self.identity_dir))
        if is_loopback(address):
            # No encryption, and gRPC itself refuses them to any other machine.
            return grpc.local_channel_credentials()
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"a bearer token is not sent to another machine ({address}) in plain text",
            hint="Set identity_dir to a folder with the federation's ca.crt",
        )


PLAIN_TEXT = ClientSecurity()
"""for this machine"""


def is_loopback(address: str) -> bool:
    """Whether `host:port` is this machine's own business."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FedLoraError(
            Reason.INVALID_CONFIG, f"the token file {file} cannot be read: {error}"
        ) from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise FedLoraError(
            Reason.INVALID_CONFIG, f"the token file {file} must hold one token and nothing else"
        )
    return token
