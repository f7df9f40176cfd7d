"""Databases that released programs have written: each comes forward, whole or not at all.

tests/data/state_schema_1.sql is a run of two workers in round 2 of 3: one update of two is there,
round 1 is complete and certified.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator_service.rounds.assignment import task_for
from aggregator_service.rounds.ports import Transaction
from aggregator_service.store.migrations import SCHEMA_VERSION
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.spec import RunPhase

ROOT = Path(__file__).parents[4]
RELEASED = {1: ROOT / "tests" / "data" / "state_schema_1.sql"}

DIES_AFTER_STATEMENT = """
import os, shutil, signal, sqlite3, sys
from pathlib import Path
from aggregator_service.store.sqlite import SqliteStateStore

class Dying(sqlite3.Connection):
    def execute(self, *arguments):
        global left
        found = super().execute(*arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, factory=Dying, **k)
source, survived = Path(sys.argv[1]), False
number = 0
while not survived:
    number += 1
    target = source.with_name(f"killed-{number}")
    shutil.copy(source, target)
    if (child := os.fork()) == 0:
        left = number
        SqliteStateStore(target).close()
        os._exit(0)
    survived = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def database_of(version: int, path: Path) -> Path:
    db = sqlite3.connect(path)
    db.executescript(RELEASED[version].read_text())
    db.close()
    return path


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """What the database says, but for the form of states and versions, which has changed."""
    db = sqlite3.connect(path)
    history = ("events", "updates", "reports", "certificates")
    found = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in history}
    found["runs"] = db.execute("SELECT run_id, name, created_at, clock FROM runs").fetchall()
    db.close()
    return found


def schema(path: Path) -> int:
    db = sqlite3.connect(path)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


def test_a_run_of_schema_1_is_what_it_was(tmp_path: Path):
    path = database_of(1, tmp_path / "db")
    before = rows(path)
    assert schema(path) == 1
    store = SqliteStateStore(path)
    ((state, clock),) = store.load_runs()
    run = state.run_id
    assert (state.phase, state.round, state.version) == (RunPhase.TRAINING, 2, 1)
    assert state.cohort == ("w-0", "w-1")
    assert state.updates == {"w-0": store.updates(run, 2)[0]}
    (task,) = state.assigned.values()
    assert [*state.assigned] == ["w-1"], "it has the task of the round in hand"
    assert (task.round, task.base_version, task.started) == (2, 1, state.phase_started)
    assert task_for(state, "w-1", clock).task_id == f"{run}/2/train/w-1"
    assert state.adapter == store.adapter(run, 1)
    assert [(a.version, a.round, a.base_version) for a in store.adapters(run)] == [
        (0, 0, None),
        (1, 1, 0),
    ]
    assert {n: (w.state, w.slot, w.epoch) for n, w in state.workers.items()} == {
        "w-0": (WorkerState.READY, 0, 1),
        "w-1": (WorkerState.READY, 1, 1),
    }
    assert state.deadline is not None
    assert 0 < clock < state.deadline < clock + 60
    assert state.spec.method.name == "flora_na"
    assert [m.path for m in state.layout.modules] == ["encoder.0.query", "encoder.1.dense"]
    events = store.events(run)
    assert [e.sequence for e in events] == list(range(1, state.last_sequence + 1))
    assert events[-1].type is EventType.UPDATE_COMMITTED
    (report,) = store.reports(run)
    assert [u.worker for u in report.updates] == ["w-0", "w-1"]
    assert report.certificate is not None
    assert report.certificate.overall.relative_error == 0.6279521067884576
    store.commit(Transaction(state=state, clock=clock))
    store.close()
    assert schema(path) == SCHEMA_VERSION
    assert rows(path) == before


@pytest.mark.parametrize("released", RELEASED)
def test_a_kill_at_any_statement_leaves_the_old_schema_or_the_new_one(
    tmp_path: Path, released: int
):
    path = database_of(released, tmp_path / "db")
    before = rows(path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DIES_AFTER_STATEMENT, str(path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    *killed, survivor = sorted(tmp_path.glob("killed-*[0-9]"), key=lambda p: int(p.name[7:]))
    assert len(killed) >= 10
    assert schema(survivor) == SCHEMA_VERSION
    found = set()
    for each in killed:
        found.add(schema(each))
        SqliteStateStore(each).close()
        assert schema(each) == SCHEMA_VERSION
        assert rows(each) == before
    assert found == {released, SCHEMA_VERSION}


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path):
    path = database_of(1, tmp_path / "db")
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = rows(path)
    with pytest.raises(FedLoraError, match=f"schema 99.*up to {SCHEMA_VERSION}") as caught:
        SqliteStateStore(path)
    assert caught.value.reason is Reason.STATE_CORRUPT
    assert (schema(path), rows(path)) == (99, before)
