"""What a migration changes inside the stored JSON: functions of a schema's version, never changed.

They know the records as text, not as today's classes, which will have moved on when an old
database comes.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

__all__ = ["name_tasks_and_bases", "take_states_apart"]


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


def _with_base(adapter: dict[str, Any], bases: dict[int, int]) -> dict[str, Any]:
    return {**adapter, "base_version": bases.get(adapter["round"]) if adapter["round"] else None}


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
