"""Databases that earlier programs have written: each comes forward, whole or not at all.

tests/data/state_schema_<n>.sql is what the last program of that schema wrote of a run of two
workers in round 2 of 3: one update of two is there, round 1 is complete and certified.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator_service.rounds.assignment import task_for
from aggregator_service.rounds.ports import Transaction
from aggregator_service.store.blobs import blob_path
from aggregator_service.store.migrations import SCHEMA_VERSION
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType, WorkerState

ROOT = Path(__file__).parents[4]
RELEASED = {
    version: ROOT / "tests" / "data" / f"state_schema_{version}.sql"
    for version in range(1, SCHEMA_VERSION)
}

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
    """What the database says, but for what later schemas write otherwise."""
    db = sqlite3.connect(path)
    found = {
        name: db.execute(f"SELECT * FROM {name}").fetchall() for name in ("events", "certificates")
    }
    for name, keys, record in (
        ("updates", "update_id, round, worker, idempotency_key", "record"),
        ("reports", "run_id, round", "report"),
    ):
        found[name] = [
            (*keys, json.loads(re.sub(r'sha256":', 'digest":', text)))
            for *keys, text in db.execute(f"SELECT {keys}, {record} FROM {name}")
        ]
    found["runs"] = db.execute("SELECT run_id, name, created_at, clock FROM runs").fetchall()
    db.close()
    return found


def schema(path: Path) -> int:
    db = sqlite3.connect(path)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


@pytest.mark.parametrize("released", RELEASED)
def test_a_run_of_an_earlier_schema_is_what_it_was(tmp_path: Path, released: int):
    path = database_of(released, tmp_path / "db")
    before = rows(path)
    assert schema(path) == released
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
    ((_, _, text),) = before["certificates"]
    overall = json.loads(text)["overall"]
    assert report.certificate.overall.relative_error == overall["relative_error"] > 0
    assert store.kept_rounds(run) == (0, 1, 2)
    assert store.uncertified_rounds(run) == ()
    assert store.named_blobs() == {
        *(a.digest for a in store.adapters(run)),
        *(u.digest for round in range(3) for u in store.updates(run, round)),
    }
    store.commit(Transaction(state=state, clock=clock))
    store.close()
    assert schema(path) == SCHEMA_VERSION
    assert rows(path) == before


@pytest.mark.parametrize("released", RELEASED)
def test_a_kill_at_any_statement_leaves_one_schema_whole(tmp_path: Path, released: int):
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
    assert found == {*range(released, SCHEMA_VERSION + 1)}


def test_blobs_that_were_named_by_sha256_are_named_by_blake3(tmp_path: Path):
    text = RELEASED[1].read_text()
    old_names = set(re.findall(r'sha256":"([0-9a-f]{64})"', text))
    contents = {name: name.encode() * 9 for name in old_names}
    gone, damaged = sorted(old_names)[:2]
    for name, data in contents.items():
        sha256 = hashlib.sha256(data).hexdigest()
        text = text.replace(name, sha256)
        blob = blob_path(tmp_path / "blobs", sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if name != gone:
            blob.write_bytes(data if name != damaged else data[1:])
    db = sqlite3.connect(tmp_path / "db")
    db.executescript(text)
    db.close()

    for _ in range(2):
        store = SqliteStateStore(tmp_path / "db")
        ((state, _),) = store.load_runs()
        (report,) = store.reports(state.run_id)
        named = {
            *(a.digest for a in store.adapters(state.run_id)),
            *(u.digest for u in (*store.updates(state.run_id, 1), *state.updates.values())),
            *(u.digest for u in report.updates),
            report.adapter_digest,
            state.adapter.digest,
        }
        store.close()
        whole = [data for name, data in contents.items() if name not in (gone, damaged)]
        left = [hashlib.sha256(contents[name]).hexdigest() for name in (gone, damaged)]
        assert named == {*(new_digest(data).hexdigest() for data in whole), *left}
        for data in whole:
            name = new_digest(data).hexdigest()
            assert blob_path(tmp_path / "blobs", name).read_bytes() == data


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
