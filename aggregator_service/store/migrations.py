"""The database's schema, as numbered versions that are each reached once.

What leads to a version, and the record that it was reached, are one transaction, so a kill in the
middle leaves the version before. Released versions are never changed: a new one is added.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from aggregator_service.store.state_upgrades import (
    list_files,
    name_blobs_by_blake3,
    name_tasks_and_bases,
    take_states_apart,
)
from fedlora.errors import FedLoraError, Reason

__all__ = ["SCHEMA_VERSION", "migrate", "schema_of"]

Step = str | Callable[[sqlite3.Connection], object]
"""a statement or, for what SQL cannot say, a function that neither begins nor ends a transaction"""

_VERSIONS: tuple[tuple[Step, ...], ...] = (
    (
        """
        CREATE TABLE runs (
            run_id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            created_at REAL NOT NULL,
            clock REAL NOT NULL,
            state TEXT NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE events (
            run_id TEXT NOT NULL REFERENCES runs,
            sequence INTEGER NOT NULL,
            event TEXT NOT NULL,
            PRIMARY KEY (run_id, sequence)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE updates (
            update_id TEXT PRIMARY KEY,
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            worker TEXT NOT NULL,
            idempotency_key TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (run_id, round, worker),
            UNIQUE (run_id, idempotency_key)
        ) STRICT
        """,
        """
        CREATE TABLE adapters (
            run_id TEXT NOT NULL REFERENCES runs,
            version INTEGER NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, version)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE reports (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            report TEXT NOT NULL,
            PRIMARY KEY (run_id, round)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE certificates (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            certificate TEXT NOT NULL,
            PRIMARY KEY (run_id, round)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        # The epoch of the server that may write; each that opens the state takes the next.
        "CREATE TABLE owner (epoch INTEGER NOT NULL) STRICT",
        "INSERT INTO owner VALUES (0)",
        name_tasks_and_bases,
        # What a run's state says of each worker: a commit writes the rows that have changed.
        """
        CREATE TABLE state_entries (
            run_id TEXT NOT NULL REFERENCES runs,
            field TEXT NOT NULL,
            key TEXT NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, field, key)
        ) STRICT, WITHOUT ROWID
        """,
        take_states_apart,
    ),
    (name_blobs_by_blake3,),
    (
        """
        CREATE TABLE invitations (
            token_digest TEXT PRIMARY KEY,
            role TEXT NOT NULL,
            name TEXT NOT NULL,
            expires_at REAL NOT NULL,
            key_digest TEXT NOT NULL,
            certificate_pem TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE members (
            role TEXT NOT NULL,
            name TEXT NOT NULL,
            certified_until REAL,
            revoked_at REAL,
            PRIMARY KEY (role, name)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        # Which files must be there is asked after every round: rows that hold nothing else.
        """
        CREATE TABLE update_files (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            worker TEXT NOT NULL,
            digest TEXT NOT NULL,
            PRIMARY KEY (run_id, round, worker)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE version_files (
            run_id TEXT NOT NULL REFERENCES runs,
            version INTEGER NOT NULL,
            round INTEGER NOT NULL,
            digest TEXT NOT NULL,
            state_digest TEXT NOT NULL,
            PRIMARY KEY (run_id, version)
        ) STRICT, WITHOUT ROWID
        """,
        list_files,
    ),
)

SCHEMA_VERSION = len(_VERSIONS)
"""version this program writes"""


def schema_of(connection: sqlite3.Connection) -> int:
    """The version of a database.

    Raises:
        FedLoraError: STATE_CORRUPT if a newer program has written it.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > SCHEMA_VERSION:
        raise FedLoraError(
            Reason.STATE_CORRUPT,
            f"the state was written by a newer fedlora: schema {found}, this program knows up to "
            f"{SCHEMA_VERSION}",
            hint="Upgrade fedlora, or choose another server.state_dir",
        )
    return found


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a database to SCHEMA_VERSION.

    Raises:
        FedLoraError: as `schema_of` does.
    """
    for version in range(schema_of(connection), SCHEMA_VERSION):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in _VERSIONS[version]:
                if isinstance(step, str):
                    connection.execute(step)
                else:
                    step(connection)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
