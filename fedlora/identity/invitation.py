"""An invitation as a file: all that a new member needs to enrol, and to know whom with.

It holds a join token, which is a secret until it is redeemed, and the authority's certificates, so
that nobody has to trust the first server that answers.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.names import AccessRole

__all__ = ["InvitationFile", "read_invitation", "write_invitation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationFile:
    """What the file says."""

    enrolment: str
    """host:port where the token is taken"""
    role: AccessRole
    name: str
    join_token: str
    expires_at: float
    """seconds since 1970"""
    authorities_pem: str


def write_invitation(file: Path, invitation: InvitationFile) -> None:
    """Writes an invitation, readable for its owner alone; FileExistsError if it is there."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as out:
        json.dump(asdict(invitation), out, indent=1)
        out.write("\n")


def read_invitation(file: Path) -> InvitationFile:
    """Reads an invitation.

    Raises:
        FedLoraError: INVALID_CONFIG for a file that cannot be read or is something else.
    """
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict) or set(found) != {f.name for f in fields(InvitationFile)}:
            raise _invalid(file)
        return InvitationFile(
            enrolment=str(found["enrolment"]),
            role=AccessRole(found["role"]),
            name=str(found["name"]),
            join_token=str(found["join_token"]),
            expires_at=float(found["expires_at"]),
            authorities_pem=str(found["authorities_pem"]),
        )
    except OSError as error:
        raise FedLoraError(
            Reason.INVALID_CONFIG, f"the invitation {file} cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise _invalid(file) from error


def _invalid(file: Path) -> FedLoraError:
    return FedLoraError(
        Reason.INVALID_CONFIG,
        f"{file} is no invitation",
        hint="An operator makes one with `fedlora pki token`",
    )
