"""Which blobs a database names: those that must be there, for its server and for a backup.

    every version; every update that is not dropped; what a state names of an open round; and what
    a method remembered, of the versions that the newest rounds were built on

A version's memory is read by the round that builds on it and by that round's certificate, so it is
needed as long as the round's updates are.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

__all__ = ["named_blobs"]

_STATES = """
    SELECT state FROM runs
    UNION ALL
    SELECT record FROM state_entries WHERE field IN ('updates', 'carried')
"""

_FILES = """
    SELECT digest FROM version_files
    UNION
    SELECT digest FROM update_files
"""

_MEMORIES = """
    SELECT state_digest FROM version_files
    WHERE run_id = :run AND state_digest <> '' AND round >= (
        SELECT COALESCE(MAX(round), 0) FROM version_files WHERE run_id = :run AND round < :oldest
    )
"""


def named_blobs(db: sqlite3.Connection) -> frozenset[str]:
    """The digests, hexadecimal, of all blobs that a database of the newest schema needs."""
    found = {digest for (digest,) in db.execute(_FILES)}
    oldest = "SELECT run_id, MIN(round) FROM update_files GROUP BY run_id"
    for run_id, round in db.execute(oldest).fetchall():
        memories = db.execute(_MEMORIES, {"run": run_id, "oldest": round})
        found.update(digest for (digest,) in memories)
    for (record,) in db.execute(_STATES):
        found.update(_digests_in(json.loads(record)))
    return frozenset(found)


def _digests_in(record: Any) -> Iterator[str]:
    """The digests of blobs in a stored record, at any depth: keys `digest` and `..._digest`."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key.split("_")[-1] != "digest":
                yield from _digests_in(value)
            # Empty for a method that remembers nothing; a number where a worker or one of its
            # metrics has such a name.
            elif value and isinstance(value, str):
                yield value
    elif isinstance(record, list):
        for value in record:
            yield from _digests_in(value)
