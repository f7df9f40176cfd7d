"""Bearer tokens, for federations that are too simple for certificates.

A file has one line a token: its digest, role, name, the second it was made and the second it ends.
The token itself is 256 random bits that only its owner keeps. Taking a line away revokes it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.names import AccessRole, check_segment

__all__ = ["BearerToken", "add_bearer_token", "read_bearer_tokens", "token_digest"]

_TOKEN_BYTES = 32
_FIELDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BearerToken:
    """One line of a file."""

    digest: str
    """SHA-256 of the token, hexadecimal"""
    role: AccessRole
    name: str
    issued_at: float
    """seconds since 1970, as the next"""
    expires_at: float


def token_digest(token: str) -> str:
    """What is kept of a secret that its owner shows."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_bearer_tokens(file: Path) -> Mapping[str, BearerToken]:
    """The tokens of a file, by digest.

    Raises:
        FedLoraError: INVALID_CONFIG for a file that cannot be read, naming the line that is wrong.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"the bearer tokens {file} cannot be read: {error}",
            hint="Make the file with `fedlora pki bearer`",
        ) from error
    tokens = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            digest, role, name, issued_at, expires_at = line.split()
            tokens[digest] = BearerToken(
                digest=digest,
                role=AccessRole(role),
                name=check_segment("name", name),
                issued_at=float(issued_at),
                expires_at=float(expires_at),
            )
        except (ValueError, FedLoraError) as error:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"line {number} of {file} is no bearer token: expected {_FIELDS} words (digest, "
                f"role, name, issued and expiring second)",
                hint="Take the line away, and make another token with `fedlora pki bearer`",
            ) from error
    return tokens


def add_bearer_token(
    file: Path, role: AccessRole, name: str, *, issued_at: float, expires_at: float
) -> str:
    """Adds a line to a file, and returns the token that it is of."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    words = (token_digest(token), role.value, check_segment("name", name))
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "a") as lines:
        lines.write(f"{' '.join(words)} {issued_at:.0f} {expires_at:.0f}\n")
    return token
