"""A run's state in rows: what changes with every commit is small, whatever the number of workers.

A state is one frozen value; most of it is maps with an entry per worker. Each entry is a row of its
own, and a commit writes those rows alone whose record is another object than the one last
committed: frozen records that have not changed are the same objects. What is left, a few hundred
bytes and the layout, is the row of the run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from aggregator_service.rounds.state import Assignment, RunState, UpdateRecord, WorkerRecord
from aggregator_service.store.records import dump, load
from fedlora.adapters.spec import AdapterLayout
from fedlora.runs.tasks import Evaluation

__all__ = ["RunStates"]

_STATE: Final[TypeAdapter[RunState]] = TypeAdapter(RunState)

_MAPS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "workers": TypeAdapter(WorkerRecord),
    "assigned": TypeAdapter(Assignment),
    "updates": TypeAdapter(UpdateRecord),
    "carried": TypeAdapter(UpdateRecord),
    "evaluations": TypeAdapter(tuple[Evaluation, ...]),
}
"""fields of a state that are maps by worker"""

_LAYOUT: Final[TypeAdapter[AdapterLayout]] = TypeAdapter(AdapterLayout)


class RunStates:
    """Reads and writes states. The caller begins and ends transactions.

    Args:
        db: the database.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._committed: dict[str, RunState] = {}
        """by run: what the rows say"""

    def load_all(self) -> tuple[tuple[RunState, float], ...]:
        """All states with their clocks, oldest run first.

        Raises:
            FedLoraError: STATE_CORRUPT.
        """
        rows = self._db.execute("SELECT run_id, state, clock FROM runs ORDER BY created_at, run_id")
        found = []
        for run_id, text, clock in rows.fetchall():
            state = load(_STATE, self._whole(run_id, text))
            self._committed[run_id] = state
            found.append((state, clock))
        return tuple(found)

    def write(self, state: RunState, clock: float) -> None:
        """Writes what has changed; a new run is created."""
        self._db.execute(
            """
            INSERT INTO runs (run_id, name, created_at, clock, state) VALUES (?, ?, ?, ?, ?)
            ON CONFLICT (run_id) DO UPDATE SET clock = excluded.clock, state = excluded.state
            """,
            (
                state.run_id,
                state.spec.name,
                state.created_at,
                clock,
                dump(_STATE, state, without={*_MAPS, "layout"}),
            ),
        )
        before = self._committed.get(state.run_id)
        if before is None:
            # New to this process: whatever is there is replaced whole.
            self._db.execute("DELETE FROM state_entries WHERE run_id = ?", (state.run_id,))
        for field, adapter in _MAPS.items():
            self._write(state.run_id, field, adapter, getattr(before, field, {}), state)
        if state.layout is not None and state.layout is not getattr(before, "layout", None):
            self._put(state.run_id, "layout", "", dump(_LAYOUT, state.layout))

    def committed(self, state: RunState) -> None:
        """Tells that what was written of a state is durable."""
        self._committed[state.run_id] = state

    def _write(
        self,
        run_id: str,
        field: str,
        adapter: TypeAdapter[Any],
        old: Mapping[str, object],
        state: RunState,
    ) -> None:
        new: Mapping[str, object] = getattr(state, field)
        if new is old:
            return
        for key in old.keys() - new.keys():
            self._db.execute(
                "DELETE FROM state_entries WHERE run_id = ? AND field = ? AND key = ?",
                (run_id, field, key),
            )
        for key, value in new.items():
            if value is not old.get(key):
                self._put(run_id, field, key, dump(adapter, value))

    def _put(self, run_id: str, field: str, key: str, record: str) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO state_entries VALUES (?, ?, ?, ?)", (run_id, field, key, record)
        )

    def _whole(self, run_id: str, text: str) -> str:
        """The state as one JSON text: one reader checks it all."""
        fields: dict[str, list[str]] = {}
        for field, key, record in self._db.execute(
            "SELECT field, key, record FROM state_entries WHERE run_id = ? ORDER BY field, key",
            (run_id,),
        ):
            entry = record if field == "layout" else f"{dump(_TEXT, key)}:{record}"
            fields.setdefault(field, []).append(entry)
        parts = [
            f'"{field}":' + (entries[0] if field == "layout" else f"{{{','.join(entries)}}}")
            for field, entries in fields.items()
        ]
        return f"{text[:-1]}{''.join(',' + part for part in parts)}}}"


_TEXT: Final[TypeAdapter[str]] = TypeAdapter(str)
