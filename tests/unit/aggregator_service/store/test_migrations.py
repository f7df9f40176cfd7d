from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from aggregator_service.store import migrations
from aggregator_service.store.migrations import SCHEMA_VERSION, migrate
from fedlora.errors import FedLoraError, Reason


@pytest.fixture
def db(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    yield connection
    connection.close()


def version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def tables(db: sqlite3.Connection) -> set[str]:
    return {n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def test_an_empty_file_becomes_a_database_of_this_version(db: sqlite3.Connection):
    migrate(db)
    assert version(db) == SCHEMA_VERSION
    assert {"runs", "events", "updates", "adapters", "reports", "certificates"} <= tables(db)


def test_a_database_of_this_version_is_left_alone(db: sqlite3.Connection):
    migrate(db)
    before = db.total_changes
    migrate(db)
    assert db.total_changes == before


def test_a_database_of_a_newer_program_is_refused_naming_both_versions(db: sqlite3.Connection):
    db.execute("PRAGMA user_version = 99")
    with pytest.raises(FedLoraError, match=f"schema 99.*up to {SCHEMA_VERSION}.*Upgrade") as caught:
        migrate(db)
    assert caught.value.reason is Reason.STATE_CORRUPT
    assert tables(db) == set()


STEPS = (
    ("CREATE TABLE one (x INTEGER)", "INSERT INTO one VALUES (1)"),
    ("CREATE TABLE two (x INTEGER)", "INSERT INTO one VALUES (2)"),
    ("CREATE TABLE three (x INTEGER)",),
)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch):
    def use(*steps: tuple[migrations.Step, ...]) -> None:
        monkeypatch.setattr(migrations, "_VERSIONS", steps)
        monkeypatch.setattr(migrations, "SCHEMA_VERSION", len(steps))

    return use


def test_each_step_runs_once_in_order_and_only_those_that_are_missing(
    db: sqlite3.Connection, steps
):
    steps(*STEPS[:1])
    migrate(db)
    assert (version(db), tables(db)) == (1, {"one"})
    steps(*STEPS)
    migrate(db)
    assert (version(db), tables(db)) == (3, {"one", "two", "three"})
    assert db.execute("SELECT x FROM one ORDER BY x").fetchall() == [(1,), (2,)]


def test_a_step_that_fails_in_its_middle_has_not_run_and_can_be_run_again(
    db: sqlite3.Connection, steps
):
    broken = ("CREATE TABLE two (x INTEGER)", "INSERT INTO one VALUES (2)", "INSERT INTO nowhere")
    steps(STEPS[0], broken)
    with pytest.raises(sqlite3.OperationalError):
        migrate(db)
    assert (version(db), tables(db)) == (1, {"one"})
    assert db.execute("SELECT x FROM one").fetchall() == [(1,)]
    steps(*STEPS)
    migrate(db)
    assert (version(db), tables(db)) == (3, {"one", "two", "three"})


def test_a_step_may_be_a_function_and_is_part_of_the_same_transaction(
    db: sqlite3.Connection, steps
):
    def double(connection: sqlite3.Connection) -> None:
        for (x,) in connection.execute("SELECT x FROM one").fetchall():
            connection.execute("UPDATE one SET x = ?", (2 * x,))

    def fail(connection: sqlite3.Connection) -> None:
        raise ValueError("a value that no row may have")

    steps(STEPS[0], (double, "CREATE TABLE two (x INTEGER)", fail))
    with pytest.raises(ValueError, match="no row"):
        migrate(db)
    assert (version(db), tables(db)) == (1, {"one"})
    assert db.execute("SELECT x FROM one").fetchall() == [(1,)]
    steps(STEPS[0], (double, "CREATE TABLE two (x INTEGER)"))
    migrate(db)
    assert (version(db), tables(db)) == (2, {"one", "two"})
    assert db.execute("SELECT x FROM one").fetchall() == [(2,)]


def test_a_process_that_dies_in_the_middle_of_a_step_leaves_it_undone(tmp_path: Path, steps):
    steps(*STEPS[:1])
    db = sqlite3.connect(tmp_path / "db", isolation_level=None)
    migrate(db)
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE two (x INTEGER)")
    db.execute("PRAGMA user_version = 2")
    # A closed connection leaves what a killed process leaves: a transaction without its COMMIT.
    db.close()
    again = sqlite3.connect(tmp_path / "db", isolation_level=None)
    assert (version(again), tables(again)) == (1, {"one"})
    again.close()
