"""Makes the identities of a new federation where its authority's key is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.certificates import Authority, new_authority, new_key, to_pem
from fedlora.identity.folder import (
    AUTHORITY_KEY,
    read_authority,
    write_authority,
    write_identity,
)
from fedlora.identity.names import AccessRole, Identity
from fedlora.identity.swap import holds

__all__ = ["AUTHORITY_FOLDER", "OPERATOR_FOLDER", "SERVER_FOLDER", "init_federation", "issue_to"]

AUTHORITY_FOLDER, SERVER_FOLDER, OPERATOR_FOLDER = "authority", "server", "operator"


def init_federation(
    folder: Path, *, federation: str, server_names: Sequence[str], days: float
) -> Authority:
    """Makes an authority, and the identities of a server and of an operator beside it.

    Args:
        folder: gets the folders authority, server and operator.
        federation: name of the federation.
        server_names: host names and addresses at which the server is dialled.
        days: how long all three are good.

    Raises:
        FedLoraError: ALREADY_EXISTS if there is an authority: another would lock everybody out.
    """
    home = folder / AUTHORITY_FOLDER
    if holds(home, AUTHORITY_KEY):
        raise FedLoraError(
            Reason.ALREADY_EXISTS,
            f"{home} has an authority, and its members would not know another",
            hint="Choose another folder, or issue more identities with `fedlora pki issue`",
        )
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    authority = new_authority(federation, now=now, days=days)
    write_authority(home, authority)
    roles = (
        (AccessRole.SERVER, "aggregator", SERVER_FOLDER, tuple(server_names)),
        (AccessRole.OPERATOR, "operator", OPERATOR_FOLDER, ()),
    )
    for role, name, place, hosts in roles:
        issue_to(folder / place, home, role=role, name=name, hosts=hosts, days=days)
    return authority


def issue_to(
    folder: Path,
    authority_dir: Path,
    *,
    role: AccessRole,
    name: str,
    hosts: Sequence[str] = (),
    days: float,
) -> None:
    """Makes an identity with a new key, signed by the authority of a folder.

    Raises:
        FedLoraError: INVALID_CONFIG for a folder without an authority; INVALID_ARGUMENT for hosts
            of anybody but a server, or a server without.
    """
    authority, key = read_authority(authority_dir), new_key()
    certificate = authority.issue(
        Identity(federation=authority.federation, role=role, name=name),
        key.public_key(),
        now=dt.datetime.now(dt.UTC).replace(microsecond=0),
        days=days,
        hosts=hosts,
    )
    write_identity(
        folder,
        authorities_pem=to_pem(authority.certificate),
        certificates_pem=to_pem(certificate),
        key=key,
    )
