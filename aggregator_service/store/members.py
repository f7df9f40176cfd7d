"""Invitations, certified members and revocations in the state's SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager

from aggregator_service.members import Invitation
from fedlora.identity.members import Member
from fedlora.identity.names import AccessRole

__all__ = ["SqliteMembers"]


class SqliteMembers:
    """A MemberStore (see `aggregator_service.members`).

    Args:
        db: the one connection, for reading.
        transaction: begins what is written, on the same connection.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        transaction: Callable[[], AbstractContextManager[sqlite3.Connection]],
    ) -> None:
        self._db = db
        self._transaction = transaction

    def invite(self, invitation: Invitation) -> None:
        """See MemberStore."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?)",
                (
                    invitation.token_digest,
                    invitation.role.value,
                    invitation.name,
                    invitation.expires_at,
                    invitation.key_digest,
                    invitation.certificate_pem,
                ),
            )

    def invitation(self, token_digest: str) -> Invitation | None:
        """See MemberStore."""
        row = self._db.execute(
            "SELECT role, name, expires_at, key_digest, certificate_pem FROM invitations "
            "WHERE token_digest = ?",
            (token_digest,),
        ).fetchone()
        if row is None:
            return None
        role, name, expires_at, key_digest, certificate_pem = row
        return Invitation(
            token_digest=token_digest,
            role=AccessRole(role),
            name=name,
            expires_at=expires_at,
            key_digest=key_digest,
            certificate_pem=certificate_pem,
        )

    def redeem(self, invitation: Invitation, *, certified_until: float) -> bool:
        """See MemberStore."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE invitations SET key_digest = ?, certificate_pem = ? "
                "WHERE token_digest = ? AND key_digest = ''",
                (invitation.key_digest, invitation.certificate_pem, invitation.token_digest),
            ).rowcount
            if changed:
                _certify(db, invitation.role, invitation.name, certified_until)
        return bool(changed)

    def certify(self, role: AccessRole, name: str, *, until: float) -> None:
        """See MemberStore."""
        with self._transaction() as db:
            _certify(db, role, name, until)

    def revoke(self, role: AccessRole, name: str, *, at: float) -> None:
        """See MemberStore."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO members VALUES (?, ?, NULL, ?) "
                "ON CONFLICT (role, name) DO UPDATE SET revoked_at = excluded.revoked_at",
                (role.value, name, at),
            )
            db.execute(
                "DELETE FROM invitations WHERE role = ? AND name = ? AND key_digest = ''",
                (role.value, name),
            )

    def members(self) -> tuple[Member, ...]:
        """See MemberStore."""
        rows = self._db.execute(
            "SELECT role, name, certified_until, revoked_at FROM members ORDER BY role, name"
        )
        return tuple(
            Member(role=AccessRole(role), name=name, certified_until=until, revoked_at=at)
            for role, name, until, at in rows.fetchall()
        )


def _certify(db: sqlite3.Connection, role: AccessRole, name: str, until: float) -> None:
    db.execute(
        "INSERT INTO members VALUES (?, ?, ?, NULL) "
        "ON CONFLICT (role, name) DO UPDATE SET certified_until = excluded.certified_until",
        (role.value, name, until),
    )
