"""What an operator says and hears of a federation's members."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.identity.names import AccessRole

__all__ = ["Invite", "Invited", "Member", "Revocation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A wish for a join token."""

    role: AccessRole
    name: str
    seconds: float
    """how long the token is to be good"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """A new invitation; its token is nowhere else."""

    join_token: str
    expires_at: float
    """seconds since 1970"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A wish to refuse what was issued to a member."""

    role: AccessRole
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An identity that the server has certified or revoked."""

    role: AccessRole
    name: str
    certified_until: float | None
    """end of the newest certificate that the server signed; None for none"""
    revoked_at: float | None
    """certificates and tokens issued up to then are refused; None for none"""
