"""A copy of a state directory, made while its server runs.

The database comes first, in one step of SQLite's online backup: it is the state after some commit,
and the server goes on committing meanwhile. Every blob that this state names was durable before it
was named and never changes, so copying them afterwards, for however long it takes, gives a whole.
Each is read against its digest on the way. They are copies, not links: one bad sector must not
damage both. Uploads that are still on their way are left out; workers send them again.

The folder appears under its name once all of it is on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator_service.store.blobs import blob_path
from aggregator_service.store.files import mapped_errors
from aggregator_service.store.migrations import schema_of
from aggregator_service.store.sqlite import DATABASE_NAME, mapped_database_errors
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.folders import sync_folder

__all__ = ["BackupSummary", "back_up"]

_BLOCK_BYTES = 1024**2

_RECORDS = (
    "SELECT state FROM runs",
    "SELECT record FROM state_entries",
    "SELECT record FROM updates",
    "SELECT record FROM adapters",
)
"""everything that may name a blob"""


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
            STATE_CORRUPT for a database that is damaged or of a newer program, or a blob that is
            damaged; OUT_OF_SPACE or DISK_FAILED for the disk. There is no `out` then.
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
            runs, digests = _copy_database(database, making / DATABASE_NAME)
            _copy_blobs(state_dir / "blobs", making / "blobs", digests, on_progress)
            for folder in (making / "blobs", making):
                sync_folder(folder)
            total = sum(p.stat().st_size for p in making.rglob("*") if p.is_file())
            making.replace(out)
            sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return BackupSummary(runs=runs, num_blobs=len(digests), total_bytes=total)


def _copy_database(source: Path, target: Path) -> tuple[tuple[str, ...], list[str]]:
    """Copies the database; returns the names of its runs and the digests that it names."""
    # Read only: neither a writer nor a checkpointer beside the server.
    with mapped_database_errors(source), _connected(f"{source.resolve().as_uri()}?mode=ro") as live:
        schema_of(live)
        with mapped_database_errors(target), _connected(target.as_uri()) as copy:
            # All pages in one step: a commit in between would begin the copy anew each time.
            live.backup(copy, pages=-1)
    # What is wrong with the copy was wrong with the original.
    with mapped_database_errors(source), _connected(target.as_uri()) as copy:
        (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        names = tuple(
            name for (name,) in copy.execute("SELECT name FROM runs ORDER BY created_at, run_id")
        )
        digests = {
            digest
            for query in _RECORDS
            for (record,) in copy.execute(query)
            for digest in _digests_in(json.loads(record))
        }
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return names, sorted(digests)


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


def _copy_blobs(
    source: Path, target: Path, digests: list[str], on_progress: Callable[[int, int], None]
) -> None:
    target.mkdir()
    paths = [blob_path(source, digest) for digest in digests]
    total = sum(path.stat().st_size for path in paths if path.exists())
    done = 0
    for digest, path in zip(digests, paths, strict=True):
        copy = blob_path(target, digest)
        copy.parent.mkdir(exist_ok=True)
        done += _copy_blob(path, copy, digest)
        on_progress(done, total)
    for folder in target.iterdir():
        sync_folder(folder)


def _copy_blob(source: Path, target: Path, digest: str) -> int:
    """Copies one blob, durably, and returns its size."""
    copied = new_digest()
    try:
        with source.open("rb") as original, target.open("xb") as copy:
            while data := original.read(_BLOCK_BYTES):
                copied.update(data)
                copy.write(data)
            copy.flush()
            os.fsync(copy.fileno())
            size = copy.tell()
        found = copied.hexdigest()
    except FileNotFoundError:
        found = "no file"
    if found != digest:
        raise FedLoraError(
            Reason.STATE_CORRUPT,
            f"stored adapter {digest} is damaged: found {found}",
            hint=f"Put the file {source.parent.name}/{digest} of an earlier backup in its place",
        )
    return size


@contextlib.contextmanager
def _connected(uri: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
