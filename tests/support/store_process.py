"""Commits to a store for ever, saying after each commit what is durable: to be killed.

python store_process.py FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from support.runs import run_spec

from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import RunState, UpdateRecord
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.runs.report import EventType, RunEvent


def main(folder: Path) -> None:
    store = SqliteStateStore(folder / "state.db")
    stored = store.load_runs()
    state = stored[0][0] if stored else RunState(run_id="r", spec=run_spec(), created_at=0.0)
    while True:
        sequence = state.last_sequence + 1
        state = replace(state, last_sequence=sequence)
        update = UpdateRecord(
            update_id=f"u-{sequence}",
            round=1,
            worker=f"w-{sequence}",
            idempotency_key=f"k-{sequence}",
            digest=f"{sequence:064d}",
            total_bytes=1,
            base_version=0,
            rank=4,
            num_examples=1,
        )
        event = RunEvent(sequence=sequence, type=EventType.UPDATE_COMMITTED, time=0.0)
        clock = float(sequence)
        store.commit(Transaction(state=state, clock=clock, events=(event,), updates=(update,)))
        print(sequence, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
