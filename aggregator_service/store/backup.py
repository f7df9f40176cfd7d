"""A copy of a state directory, made while its server runs.

The database comes first, in one step of SQLite's online backup: it is the state after some commit,
and the server goes on committing meanwhile. Every blob that this state names was durable before it
was named and never changes, so copying them afterwards, for however long it takes, gives a whole.
Only what the server drops meanwhile may be gone by then: the database is copied again then, as it
is now, which names it no more. Each blob is read against its digest on the way. They are copies,
not links: one bad sector must not damage both. Uploads that are still on their way are left out;
workers send them again. So are sessions: a restored server may give the number of a version twice,
and what a worker holds of versions is worth no more than the session in which it was given.

The folder appears under its name once all of it is on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from aggregator_service.store.blobs import blob_path
from aggregator_service.store.files import mapped_errors
from aggregator_service.store.migrations import SCHEMA_VERSION, schema_of
from aggregator_service.store.named_blobs import named_blobs
from aggregator_service.store.sqlite import DATABASE_NAME, mapped_database_errors
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.folders import sync_folder

__all__ = ["BackupSummary", "back_up"]

_BLOCK_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSummary:
    """What a backup holds."""

    runs: tuple[str, ...]
    """names, oldest first"""
    num_blobs: int
    total_bytes: int
    """database and blobs"""


def back_up(
    state_dir: Path, out: Path, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> BackupSummary:
    """Copies a state directory, whether or not a server runs on it.

    Args:
        state_dir: the server's.
        out: folder to write; may exist if it is empty.
        on_progress: told how many bytes of blobs are copied, and of how many.

    Raises:
        FedLoraError: NOT_FOUND if state_dir holds no state, ALREADY_EXISTS if `out` is not empty,
            STATE_CORRUPT for a database that is damaged or of another program's schema, or a blob
            that is damaged; OUT_OF_SPACE or DISK_FAILED for the disk. There is no `out` then.
    """
    database = state_dir / DATABASE_NAME
    if not database.is_file():
        raise FedLoraError(
            Reason.NOT_FOUND,
            f"{state_dir} holds no state: there is no {DATABASE_NAME} in it",
            hint="Name the server's state_dir",
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FedLoraError(
            Reason.ALREADY_EXISTS,
            f"{out} is there and not empty",
            hint="Give every backup a folder of its own",
        )
    out = out.resolve()
    making = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        with mapped_errors():
            making.mkdir(parents=True)
            (making / "blobs").mkdir()
            runs, digests = _copy_database(database, making / DATABASE_NAME)
            while gone := _copy_blobs(state_dir / "blobs", making / "blobs", digests, on_progress):
                runs, digests = _copy_database(database, making / DATABASE_NAME)
                _check_dropped(state_dir / "blobs", gone & digests)
            _remove_others(making / "blobs", digests)
            for folder in (*(making / "blobs").iterdir(), making / "blobs", making):
                sync_folder(folder)
            total = sum(p.stat().st_size for p in making.rglob("*") if p.is_file())
            making.replace(out)
            sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return BackupSummary(runs=runs, num_blobs=len(digests), total_bytes=total)


def _copy_database(source: Path, target: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    """Copies the database; returns the names of its runs and the digests that it names."""
    target.unlink(missing_ok=True)
    # Read only: neither a writer nor a checkpointer beside the server.
    with mapped_database_errors(source), _connected(f"{source.resolve().as_uri()}?mode=ro") as live:
        if (found := schema_of(live)) < SCHEMA_VERSION:
            raise FedLoraError(
                Reason.STATE_CORRUPT,
                f"the state was written by an older fedlora: schema {found}, this program backs up "
                f"{SCHEMA_VERSION}",
                hint="Back it up with the program that serves it, or serve it with this one first",
            )
        with mapped_database_errors(target), _connected(target.as_uri()) as copy:
            # All pages in one step: a commit in between would begin the copy anew each time.
            live.backup(copy, pages=-1)
    # What is wrong with the copy was wrong with the original.
    with mapped_database_errors(source), _connected(target.as_uri()) as copy:
        (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        _forget_sessions(copy)
        names = tuple(
            name for (name,) in copy.execute("SELECT name FROM runs ORDER BY created_at, run_id")
        )
        digests = named_blobs(copy)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return names, digests


def _forget_sessions(copy: sqlite3.Connection) -> None:
    """Makes every worker register again with whoever serves the copy."""
    copy.execute("BEGIN")
    workers = "SELECT run_id, key, record FROM state_entries WHERE field = 'workers'"
    for run_id, name, record in copy.execute(workers).fetchall():
        copy.execute(
            "UPDATE state_entries SET record = ? WHERE (run_id, field, key) = (?, 'workers', ?)",
            (json.dumps({**json.loads(record), "session_hash": ""}), run_id, name),
        )
    copy.execute("COMMIT")


def _copy_blobs(
    source: Path,
    target: Path,
    digests: Collection[str],
    on_progress: Callable[[int, int], None],
) -> set[str]:
    """Copies the blobs that are not there yet; returns those that the source lacks."""
    sizes = {digest: _size_of(blob_path(source, digest)) for digest in sorted(digests)}
    total, done, gone = sum(filter(None, sizes.values())), 0, set()
    for digest in sizes:
        copy = blob_path(target, digest)
        copy.parent.mkdir(exist_ok=True)
        size = _size_of(copy)
        if size is None and (size := _copy_blob(blob_path(source, digest), copy, digest)) is None:
            gone.add(digest)
            continue
        done += size
        on_progress(done, total)
    return gone


def _size_of(path: Path) -> int | None:
    """A file's size, None if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _copy_blob(source: Path, target: Path, digest: str) -> int | None:
    """Copies one blob, durably, and returns its size; None if it is not there."""
    copied = new_digest()
    try:
        original = source.open("rb")
    except FileNotFoundError:
        return None
    with original, target.open("xb") as copy:
        while data := original.read(_BLOCK_BYTES):
            copied.update(data)
            copy.write(data)
        copy.flush()
        os.fsync(copy.fileno())
        size = copy.tell()
    if (found := copied.hexdigest()) != digest:
        raise _damaged(digest, found)
    return size


def _remove_others(blobs: Path, digests: Collection[str]) -> None:
    """Takes away what an earlier copy of the database named and the last one does not."""
    for copy in blobs.glob("*/*"):
        if copy.name not in digests:
            copy.unlink()


def _check_dropped(source: Path, gone: Collection[str]) -> None:
    """Looks again for what was gone and is named still, or anew: the same bytes may have come."""
    for digest in sorted(gone):
        if _size_of(blob_path(source, digest)) is None:
            raise _damaged(digest, "no file")


def _damaged(digest: str, found: str) -> FedLoraError:
    return FedLoraError(
        Reason.STATE_CORRUPT,
        f"stored adapter {digest} is damaged: found {found}",
        hint=f"Put the file {digest[:2]}/{digest} of an earlier backup in its place",
    )


@contextlib.contextmanager
def _connected(uri: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
