"""The state of all runs in one SQLite file.

One connection, in one thread, is the only writer there is: SQLite before 3.51.3 can corrupt a WAL
that two connections write or checkpoint at once. `synchronous=FULL` makes an acknowledged update
survive a loss of power, not only a kill. Domain objects are stored as JSON, made and read by
pydantic; the columns beside it are the keys that must be unique.

Whoever opens the file takes the next epoch, and every commit looks in its own transaction whether
the epoch is still its own. So a server that was frozen while another took its place writes nothing
when it wakes, and has never two writers beside each other.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from aggregator_service.failpoints import Failpoint, reach
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from aggregator_service.store.files import mapped_errors
from aggregator_service.store.members import SqliteMembers
from aggregator_service.store.migrations import migrate
from aggregator_service.store.named_blobs import named_blobs
from aggregator_service.store.records import dump, load
from aggregator_service.store.run_states import RunStates
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import Certificate, RoundReport, RunEvent

__all__ = ["DATABASE_NAME", "SqliteStateStore", "mapped_database_errors"]

DATABASE_NAME = "fedlora.sqlite"
"""the file in a state directory"""


def _json(domain: Any) -> TypeAdapter[Any]:
    return TypeAdapter(domain)


_EVENT: Final = _json(RunEvent)
_UPDATE: Final = _json(UpdateRecord)
_ADAPTER: Final = _json(AdapterRecord)
_REPORT: Final = _json(RoundReport)
_CERTIFICATE: Final = _json(Certificate)


class SqliteStateStore:
    """A StateStore (see `rounds.ports`) in a file.

    Args:
        path: the database; created if it is not there.

    Raises:
        FedLoraError: STATE_CORRUPT if the file is no database, a damaged one, or one of a newer
            program; OUT_OF_SPACE or DISK_FAILED if the disk is full or fails.
    """

    def __init__(self, path: Path) -> None:
        # isolation_level None: transactions are begun and ended here, in words.
        with mapped_database_errors(path):
            self._db = sqlite3.connect(path, isolation_level=None)
        try:
            with mapped_database_errors(path):
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                (verdict,) = self._db.execute("PRAGMA quick_check").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)  # noqa: TRY301 - one place maps it
                migrate(self._db)
                self._epoch = self._take_epoch()
                self._states = RunStates(self._db)
                self.members = SqliteMembers(self._db, self._owned_transaction)
                """who has been invited, certified and revoked"""
        except BaseException:
            self._db.close()
            raise
        self._path = path

    def load_runs(self) -> tuple[tuple[RunState, float], ...]:
        """See StateStore."""
        return self._states.load_all()

    def commit(self, transaction: Transaction) -> None:
        """See StateStore."""
        state, run_id = transaction.state, transaction.state.run_id
        with self._owned_transaction() as db:
            self._states.write(state, transaction.clock)
            for event in transaction.events:
                db.execute(
                    "INSERT INTO events VALUES (?, ?, ?)",
                    (run_id, event.sequence, dump(_EVENT, event)),
                )
            for update in transaction.updates:
                db.execute(
                    "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        update.update_id,
                        run_id,
                        update.round,
                        update.worker,
                        update.idempotency_key,
                        dump(_UPDATE, update),
                    ),
                )
                db.execute(
                    "INSERT INTO update_files VALUES (?, ?, ?, ?)",
                    (run_id, update.round, update.worker, update.digest),
                )
            for adapter in transaction.adapters:
                key = (run_id, adapter.version)
                db.execute("INSERT INTO adapters VALUES (?, ?, ?)", (*key, dump(_ADAPTER, adapter)))
                db.execute(
                    "INSERT INTO version_files VALUES (?, ?, ?, ?, ?)",
                    (*key, adapter.round, adapter.digest, adapter.state_digest),
                )
            for report in transaction.reports:
                db.execute(
                    "INSERT OR REPLACE INTO reports VALUES (?, ?, ?)",
                    (run_id, report.round, dump(_REPORT, report)),
                )
            for round, certificate in transaction.certificates:
                db.execute(
                    "INSERT OR REPLACE INTO certificates VALUES (?, ?, ?)",
                    (run_id, round, dump(_CERTIFICATE, certificate)),
                )
        self._states.committed(state)

    def events(
        self, run_id: str, *, first_sequence: int = 1, limit: int = 1000
    ) -> tuple[RunEvent, ...]:
        """See StateStore."""
        rows = self._db.execute(
            "SELECT event FROM events WHERE run_id = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
            (run_id, min(first_sequence, 2**62), limit),
        )
        return tuple(load(_EVENT, event) for (event,) in rows.fetchall())

    def updates(self, run_id: str, round: int) -> tuple[UpdateRecord, ...]:
        """See StateStore."""
        rows = self._db.execute(
            "SELECT record FROM updates WHERE run_id = ? AND round = ? ORDER BY worker",
            (run_id, round),
        )
        return tuple(load(_UPDATE, record) for (record,) in rows.fetchall())

    def update_by_key(self, run_id: str, idempotency_key: str) -> UpdateRecord | None:
        """See StateStore."""
        row = self._db.execute(
            "SELECT record FROM updates WHERE run_id = ? AND idempotency_key = ?",
            (run_id, idempotency_key),
        ).fetchone()
        return load(_UPDATE, row[0]) if row else None

    def adapter(self, run_id: str, version: int) -> AdapterRecord | None:
        """See StateStore."""
        row = self._db.execute(
            "SELECT record FROM adapters WHERE run_id = ? AND version = ?",
            (run_id, min(version, 2**62)),
        ).fetchone()
        return load(_ADAPTER, row[0]) if row else None

    def adapters(self, run_id: str) -> tuple[AdapterRecord, ...]:
        """See StateStore."""
        rows = self._db.execute(
            "SELECT record FROM adapters WHERE run_id = ? ORDER BY version", (run_id,)
        )
        return tuple(load(_ADAPTER, record) for (record,) in rows.fetchall())

    def reports(
        self, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> tuple[RoundReport, ...]:
        """See StateStore."""
        rows = self._db.execute(
            """
            SELECT report, certificate FROM reports LEFT JOIN certificates USING (run_id, round)
            WHERE run_id = ? AND round > ? ORDER BY round LIMIT ?
            """,
            (run_id, after, -1 if limit is None else limit),
        )
        return tuple(_whole_report(*row) for row in rows.fetchall())

    def report(self, run_id: str, round: int) -> RoundReport | None:
        """See StateStore."""
        row = self._db.execute(
            """
            SELECT report, certificate FROM reports LEFT JOIN certificates USING (run_id, round)
            WHERE run_id = ? AND round = ?
            """,
            (run_id, min(round, 2**62)),
        ).fetchone()
        return _whole_report(*row) if row else None

    def uncertified_rounds(self, run_id: str) -> tuple[int, ...]:
        """See StateStore."""
        rows = self._db.execute(
            """
            SELECT round FROM version_files WHERE run_id = :run AND round > 0
            EXCEPT
            SELECT round FROM certificates WHERE run_id = :run ORDER BY round
            """,
            {"run": run_id},
        )
        return tuple(round for (round,) in rows.fetchall())

    def kept_rounds(self, run_id: str) -> tuple[int, ...]:
        """See StateStore."""
        rows = self._db.execute(
            "SELECT DISTINCT round FROM update_files WHERE run_id = ? ORDER BY round",
            (run_id,),
        )
        return tuple(round for (round,) in rows.fetchall())

    def drop_updates(self, run_id: str, rounds: Collection[int]) -> None:
        """See StateStore."""
        with self._owned_transaction() as db:
            db.executemany(
                "DELETE FROM update_files WHERE run_id = ? AND round = ?",
                [(run_id, round) for round in rounds],
            )

    def named_blobs(self) -> frozenset[str]:
        """See StateStore."""
        # Files are not fenced as commits are: what a newer server has just made, and not named
        # yet, is not ours to judge.
        self._check_epoch()
        return named_blobs(self._db)

    def close(self) -> None:
        """See StateStore."""
        self._db.close()

    def _take_epoch(self) -> int:
        # One statement is a transaction of its own, durable as any other.
        ((epoch,),) = self._db.execute("UPDATE owner SET epoch = epoch + 1 RETURNING epoch")
        return int(epoch)

    def _check_epoch(self) -> None:
        (epoch,) = self._db.execute("SELECT epoch FROM owner").fetchone()
        if epoch != self._epoch:
            raise FedLoraError(
                Reason.STATE_LOCKED,
                f"a newer server (epoch {epoch}) owns the state, this one has epoch {self._epoch}",
                hint="Go to the newer server",
            )

    @contextlib.contextmanager
    def _owned_transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that fails where a newer server owns the state."""
        with self._transaction() as db:
            self._check_epoch()
            yield db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with mapped_database_errors(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                with mapped_errors():
                    reach(Failpoint.BEFORE_COMMIT)
                self._db.execute("COMMIT")
                reach(Failpoint.COMMITTED)
            except BaseException:
                # A full disk may have rolled back already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def mapped_database_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite says of a file into errors that name the file and the way out.

    Raises:
        FedLoraError: ALREADY_EXISTS, STATE_CORRUPT, OUT_OF_SPACE or DISK_FAILED.
    """
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise FedLoraError(Reason.ALREADY_EXISTS, f"already stored: {error}") from error
    except sqlite3.DatabaseError as error:
        # The low byte is the code of which the rest is a variant. Errors of our own have none.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        reason, what, hint = _REFUSALS.get(code, (None, "", ""))
        if reason is None:
            raise
        raise FedLoraError(reason, f"{path} {what}: {error}", hint=hint) from error


_DAMAGED = (Reason.STATE_CORRUPT, "is damaged", "Restore the state directory from a backup")
_REFUSALS: Final = {
    sqlite3.SQLITE_FULL: (
        Reason.OUT_OF_SPACE,
        "cannot grow",
        "Free space in the state directory and try again",
    ),
    sqlite3.SQLITE_IOERR: (
        Reason.DISK_FAILED,
        "cannot be read or written",
        "Look at the disk of the state directory and try again",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        Reason.DISK_FAILED,
        "cannot be opened",
        "Check the permissions of the state directory",
    ),
    sqlite3.SQLITE_READONLY: (
        Reason.DISK_FAILED,
        "cannot be written",
        "Check the permissions of the state directory",
    ),
    sqlite3.SQLITE_BUSY: (
        Reason.DISK_FAILED,
        "is held by another process in the middle of a write",
        "End that process, or try again once it is done",
    ),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
"""SQLite's codes that are nobody's mistake: what it is here, and the way out"""


def _whole_report(report: str, certificate: str | None) -> RoundReport:
    found: RoundReport = load(_REPORT, report)
    return replace(found, certificate=load(_CERTIFICATE, certificate) if certificate else None)
