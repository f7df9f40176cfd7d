"""What a migration changes inside the stored JSON: functions of a schema's version, never changed.

They know the records as text, not as today's classes, which will have moved on when an old
database comes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from fedlora.digests import digest_file
from fedlora.folders import sync_folder

__all__ = ["list_files", "name_blobs_by_blake3", "name_tasks_and_bases", "take_states_apart"]


def name_tasks_and_bases(db: sqlite3.Connection) -> None:
    """Schema 2: training in hand is written down, and every version says what it was built on.

    Before, whoever was in the cohort and had sent nothing had the task of the round, and a round
    built on the version from which its first update began.
    """
    for run_id, text in db.execute("SELECT run_id, state FROM runs").fetchall():
        bases: dict[int, int] = {}
        for round, record in db.execute(
            "SELECT round, record FROM updates WHERE run_id = ?", (run_id,)
        ):
            bases.setdefault(round, json.loads(record)["base_version"])
        rows = db.execute("SELECT version, record FROM adapters WHERE run_id = ?", (run_id,))
        for version, record in rows.fetchall():
            adapter = _with_base(json.loads(record), bases)
            db.execute(
                "UPDATE adapters SET record = ? WHERE run_id = ? AND version = ?",
                (_text(adapter), run_id, version),
            )
        state = json.loads(text)
        if state["phase"] == "training":
            task = {
                "round": state["round"],
                "base_version": state["version"],
                "started": state["phase_started"],
            }
            missing = [name for name in state["cohort"] if name not in state["updates"]]
            state["assigned"] = dict.fromkeys(missing, task)
        if state.get("adapter"):
            state["adapter"] = _with_base(state["adapter"], bases)
        db.execute("UPDATE runs SET state = ? WHERE run_id = ?", (_text(state), run_id))


def take_states_apart(db: sqlite3.Connection) -> None:
    """Schema 2: a state's entries by worker, and its layout, become rows of their own."""
    for run_id, text in db.execute("SELECT run_id, state FROM runs").fetchall():
        state = json.loads(text)
        for field in ("workers", "assigned", "updates", "carried", "evaluations"):
            for key, record in state.pop(field, {}).items():
                db.execute(
                    "INSERT INTO state_entries VALUES (?, ?, ?, ?)",
                    (run_id, field, key, _text(record)),
                )
        if (layout := state.pop("layout", None)) is not None:
            db.execute(
                "INSERT INTO state_entries VALUES (?, 'layout', '', ?)", (run_id, _text(layout))
            )
        db.execute("UPDATE runs SET state = ? WHERE run_id = ?", (_text(state), run_id))


def name_blobs_by_blake3(db: sqlite3.Connection) -> None:
    """Schema 3: blobs are named by their BLAKE3, and records call it `digest`.

    The files get their new names beside the old ones, which are left for a program that is killed
    before the transaction ends. A blob that is missing or damaged keeps the name that it had, and
    is found out where every blob is.
    """
    (path,) = (file for _, name, file in db.execute("PRAGMA database_list") if name == "main")
    new_name = functools.cache(functools.partial(_renamed_blob, Path(path).parent / "blobs"))

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(each) for each in value]
        if not isinstance(value, dict):
            return value
        return dict(
            (key[: -len("sha256")] + "digest", new_name(each))
            if key.split("_")[-1] == "sha256"
            else (key, renamed(each))
            for key, each in value.items()
        )

    for table, key, column in (
        ("runs", "run_id", "state"),
        ("state_entries", "run_id, field, key", "record"),
        ("updates", "update_id", "record"),
        ("adapters", "run_id, version", "record"),
        ("reports", "run_id, round", "report"),
    ):
        for *names, text in db.execute(f"SELECT {key}, {column} FROM {table}").fetchall():  # noqa: S608
            where = " AND ".join(f"{name} = ?" for name in key.split(", "))
            statement = f"UPDATE {table} SET {column} = ? WHERE {where}"  # noqa: S608
            db.execute(statement, (_text(renamed(json.loads(text))), *names))


def list_files(db: sqlite3.Connection) -> None:
    """Schema 5: the files of updates and versions stand in tables of their own."""
    rows = db.execute("SELECT run_id, round, worker, record FROM updates").fetchall()
    db.executemany(
        "INSERT INTO update_files VALUES (?, ?, ?, ?)",
        ((*key, json.loads(text)["digest"]) for *key, text in rows),
    )
    rows = db.execute("SELECT run_id, version, record FROM adapters").fetchall()
    adapters = ((*key, json.loads(text)) for *key, text in rows)
    db.executemany(
        "INSERT INTO version_files VALUES (?, ?, ?, ?, ?)",
        (
            (run_id, version, a["round"], a["digest"], a.get("state_digest", ""))
            for run_id, version, a in adapters
        ),
    )


def _renamed_blob(blobs: Path, sha256: str) -> str:
    old = blobs / sha256[:2] / sha256
    if not sha256 or not old.is_file():
        return sha256
    with old.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return sha256
        file.seek(0)
        digest = digest_file(file).hexdigest()
    new = blobs / digest[:2] / digest
    new.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        new.hardlink_to(old)
    sync_folder(new.parent)
    return digest


def _with_base(adapter: dict[str, Any], bases: dict[int, int]) -> dict[str, Any]:
    return {**adapter, "base_version": bases.get(adapter["round"]) if adapter["round"] else None}


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
