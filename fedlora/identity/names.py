"""Who somebody is in a federation: a role and a name, written as a SPIFFE id.

A certificate says it in its URI SAN, `spiffe://FEDERATION/ROLE/NAME`. The subject says nothing that
anybody relies on. Source of the form: SPIFFE-ID specification, sections 2 and 3.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from fedlora.errors import FedLoraError, invalid_argument

__all__ = ["AccessRole", "Identity", "check_segment", "identity_of_uri"]

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AccessRole(enum.StrEnum):
    """What an identity may do; `aggregator_service.transport.access_table` says it call by call."""

    SERVER = "server"
    """is dialled, and calls nobody"""
    WORKER = "worker"
    """trains: registers, submits and fetches, as itself only"""
    OPERATOR = "operator"
    """creates and stops runs, invites, revokes, takes adapters out"""
    OBSERVER = "observer"
    """looks at runs"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A member of a federation."""

    federation: str
    """letters, digits, "-", "_" and "."; the trust domain"""
    role: AccessRole
    name: str
    """the same letters; of a worker its name in every run"""

    def __post_init__(self) -> None:
        check_segment("federation", self.federation)
        check_segment("name", self.name)

    @property
    def uri(self) -> str:
        """As it stands in a certificate."""
        return f"spiffe://{self.federation}/{self.role.value}/{self.name}"

    def __str__(self) -> str:
        return f"{self.role.value} {self.name!r} of {self.federation!r}"


def check_segment(what: str, text: str) -> str:
    """The text, if it can be a federation or a name; INVALID_ARGUMENT if not."""
    if not _SEGMENT.fullmatch(text):
        raise invalid_argument(
            f"the {what} of an identity must be 1 to 128 letters, digits, '-', '_' or '.', "
            f"beginning with a letter or digit, got {text[:80]!r}"
        )
    return text


def identity_of_uri(uri: str) -> Identity | None:
    """The identity that a URI names; None for any other URI."""
    scheme, _, path = uri.partition("://")
    parts = path.split("/")
    if scheme != "spiffe" or len(parts) != 3 or parts[1] not in set(AccessRole):
        return None
    try:
        return Identity(federation=parts[0], role=AccessRole(parts[1]), name=parts[2])
    except FedLoraError:
        return None
