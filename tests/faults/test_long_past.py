"""What a run leaves in the database: rows in proportion to rounds and workers, and no tensor."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from aggregator_service.store.sqlite import DATABASE_NAME

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

MAX_BYTES = 8192
"""per round and worker; a certificate of twelve layers is among them once a round"""


def weight(folder: Path, *, num_rounds: int, num_workers: int) -> tuple[int, int]:
    """Rows and bytes of a run with a past."""
    from reliabilities.history import write_history

    write_history(folder, num_rounds=num_rounds, num_workers=num_workers)
    database = folder / DATABASE_NAME
    with sqlite3.connect(database) as db:
        tables = [t for (t,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = sum(db.execute(f'SELECT count(*) FROM "{t}"').fetchone()[0] for t in tables)
    db.close()
    return rows, database.stat().st_size


def test_a_database_grows_with_rounds_times_workers_and_holds_no_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    short, long, wide = (
        weight(tmp_path / f"{rounds}-{workers}", num_rounds=rounds, num_workers=workers)
        for rounds, workers in ((50, 4), (200, 4), (50, 16))
    )
    for rows, size in (long, wide):
        # Three quarters of it came with the four times as many updates.
        assert rows <= 4 * short[0]
        assert size - short[1] <= MAX_BYTES * 150 * 4
