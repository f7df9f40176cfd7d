"""What only the SQLite store has: a file, a disk, and a process that may be killed."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import run_spec

from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import RunState
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, RunEvent

TESTS = Path(__file__).parents[3]
STATE = RunState(run_id="r", spec=run_spec(), created_at=0.0)


def events(first: int, last: int, text: str = "") -> tuple[RunEvent, ...]:
    return tuple(
        RunEvent(sequence=i, type=EventType.RUN_CREATED, time=0.0, detail={"text": text})
        for i in range(first, last + 1)
    )


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path):
    store = SqliteStateStore(tmp_path / "db")
    store.commit(Transaction(state=STATE, clock=12.5, events=events(1, 3)))
    store.close()
    again = SqliteStateStore(tmp_path / "db")
    assert again.load_runs() == ((STATE, 12.5),)
    assert again.events("r") == events(1, 3)
    again.close()


def test_every_commit_is_synced_not_only_written(tmp_path: Path):
    store = SqliteStateStore(tmp_path / "db")
    pragma = {
        name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    store.close()
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path):
    """Void unless at least 20 commits were acknowledged around each kill."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    script = [sys.executable, str(TESTS / "support" / "store_process.py"), str(tmp_path)]
    acknowledged, generator = 0, random.Random(7)
    for _ in range(3):
        wanted = acknowledged + generator.randrange(20, 60)
        with subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            assert writer.stdout is not None
            while acknowledged < wanted:
                line = writer.stdout.readline()
                assert line, f"the process ended with {writer.wait()}"
                assert int(line) in (acknowledged + 1, acknowledged + 2)
                acknowledged = int(line)
            writer.kill()
            rest = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        acknowledged = max([acknowledged, *rest])
        store = SqliteStateStore(tmp_path / "state.db")
        ((state, clock),) = store.load_runs()
        # One commit may have been made whose acknowledgement nobody heard.
        assert state.last_sequence in (acknowledged, acknowledged + 1)
        assert clock == state.last_sequence
        stored = range(1, state.last_sequence + 1)
        assert [e.sequence for e in store.events("r", limit=10**6)] == list(stored)
        assert {u.update_id for u in store.updates("r", 1)} == {f"u-{i}" for i in stored}
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()


def test_a_full_disk_refuses_the_transaction_and_takes_the_next_once_there_is_room(tmp_path: Path):
    store = SqliteStateStore(tmp_path / "db")
    store.commit(Transaction(state=STATE, clock=1.0, events=events(1, 1)))
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    large = Transaction(state=STATE, clock=2.0, events=events(2, 50, "x" * 4000))
    with pytest.raises(FedLoraError, match="cannot grow") as caught:
        store.commit(large)
    assert caught.value.reason is Reason.OUT_OF_SPACE
    assert store.load_runs() == ((STATE, 1.0),)
    assert store.events("r") == events(1, 1)
    store._db.execute("PRAGMA max_page_count = 100000")
    store.commit(large)
    assert len(store.events("r")) == 50
    store.close()


# --- files that are no store ----------------------------------------------------------------


def filled(path: Path) -> bytes:
    store = SqliteStateStore(path)
    store.commit(Transaction(state=STATE, clock=1.0, events=events(1, 200, "x" * 200)))
    store.close()
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_database_cut_short_is_damaged(tmp_path: Path, kept: float):
    data = filled(tmp_path / "db")
    (tmp_path / "db").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(FedLoraError, match="is damaged") as caught:
        SqliteStateStore(tmp_path / "db")
    assert caught.value.reason is Reason.STATE_CORRUPT


def test_a_database_with_a_page_overwritten_is_damaged(tmp_path: Path):
    data = bytearray(filled(tmp_path / "db"))
    for page in range(4096, len(data), 4096):
        damaged = data.copy()
        damaged[page : page + 100] = b"\xff" * 100
        (tmp_path / "db").write_bytes(damaged)
        with pytest.raises(FedLoraError) as caught:
            SqliteStateStore(tmp_path / "db")
        assert caught.value.reason is Reason.STATE_CORRUPT, f"page at {page}"


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"not a database" * 1000)
    with pytest.raises(FedLoraError, match="is damaged") as caught:
        SqliteStateStore(tmp_path / "db")
    assert caught.value.reason is Reason.STATE_CORRUPT


def test_a_record_that_cannot_be_read_is_damaged(tmp_path: Path):
    filled(tmp_path / "db")
    for damage in ('{"run_id": 5', '{"run_id": "r"}', "\x00", ""):
        db = sqlite3.connect(tmp_path / "db")
        db.execute("UPDATE runs SET state = ?", (damage,))
        db.commit()
        db.close()
        store = SqliteStateStore(tmp_path / "db")
        with pytest.raises(FedLoraError, match=r"damaged.*Restore .* from a backup") as caught:
            store.load_runs()
        assert caught.value.reason is Reason.STATE_CORRUPT
        store.close()


def test_a_path_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path):
    (tmp_path / "db").mkdir()
    with pytest.raises(FedLoraError, match="cannot be opened") as caught:
        SqliteStateStore(tmp_path / "db")
    assert caught.value.reason is Reason.DISK_FAILED


def test_a_mistake_of_ours_is_not_blamed_on_the_disk(tmp_path: Path):
    store = SqliteStateStore(tmp_path / "db")
    store._db.execute("DROP TABLE reports")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        store.reports("r")
    store.close()


# --- one writer at a time -------------------------------------------------------------------


def test_a_server_that_was_replaced_writes_nothing_more(tmp_path: Path):
    old = SqliteStateStore(tmp_path / "db")
    old.commit(Transaction(state=STATE, clock=1.0, events=events(1, 1)))
    new = SqliteStateStore(tmp_path / "db")
    late = Transaction(state=STATE, clock=9.0, events=events(2, 2))
    for _ in range(2):
        with pytest.raises(FedLoraError, match=r"epoch 2\) owns .* has epoch 1") as caught:
            old.commit(late)
        assert caught.value.reason is Reason.STATE_LOCKED
    with pytest.raises(FedLoraError, match="epoch 2"):
        old.drop_updates("r", [1])
    with pytest.raises(FedLoraError, match="epoch 2"):
        old.named_blobs()
    assert (new.load_runs(), new.events("r")) == (((STATE, 1.0),), events(1, 1))
    new.commit(Transaction(state=STATE, clock=2.0, events=events(2, 2)))
    old.close()
    new.commit(Transaction(state=STATE, clock=3.0, events=events(3, 3)))
    new.close()


def test_epochs_are_counted_over_restarts(tmp_path: Path):
    for _ in range(3):
        SqliteStateStore(tmp_path / "db").close()
    killed, newest = SqliteStateStore(tmp_path / "db"), SqliteStateStore(tmp_path / "db")
    with pytest.raises(FedLoraError, match=r"\(epoch 5\) owns .* has epoch 4"):
        killed.commit(Transaction(state=STATE, clock=1.0))
    killed.close()
    newest.close()


def test_nobody_takes_the_state_from_a_server_in_the_middle_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, timeout=0.05))
    old = SqliteStateStore(tmp_path / "db")
    with old._transaction():
        with pytest.raises(FedLoraError, match="in the middle of a write") as caught:
            SqliteStateStore(tmp_path / "db")
        assert caught.value.reason is Reason.DISK_FAILED
    old.commit(Transaction(state=STATE, clock=1.0))
    old.close()
