"""Who has been invited to a federation, certified and revoked, and what keeps that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedlora.identity.members import Member
from fedlora.identity.names import AccessRole

__all__ = ["Invitation", "MemberStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A join token, of which only the digest is kept."""

    token_digest: str
    """SHA-256 of the token, hexadecimal"""
    role: AccessRole
    name: str
    expires_at: float
    """seconds since 1970"""
    key_digest: str = ""
    """SHA-256 of the public key that it was redeemed for, hexadecimal; empty before that"""
    certificate_pem: str = ""
    """what it was redeemed for"""


class MemberStore(Protocol):
    """Durable, as `rounds.ports.StateStore`, which has one. One caller at a time."""

    def invite(self, invitation: Invitation) -> None:
        """Keeps an invitation."""
        ...

    def invitation(self, token_digest: str) -> Invitation | None:
        """The invitation of a token."""
        ...

    def redeem(self, invitation: Invitation, *, certified_until: float) -> bool:
        """Marks an invitation as redeemed for the key and certificate in it.

        Returns:
            False, and nothing has changed, if it was redeemed before.
        """
        ...

    def certify(self, role: AccessRole, name: str, *, until: float) -> None:
        """Notes a renewed certificate."""
        ...

    def revoke(self, role: AccessRole, name: str, *, at: float) -> None:
        """Notes a revocation, of what was issued until `at`, and drops open invitations."""
        ...

    def members(self) -> tuple[Member, ...]:
        """All that were ever certified or revoked, by role and name."""
        ...
