from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord
from aggregator_service.store.lock import StateLock
from aggregator_service.store.migrations import SCHEMA_VERSION
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import Certificate, CertificateEntry, EventType, RoundReport, RunEvent

NAN = float("nan")
ENTRY = CertificateEntry(
    ideal_norm=1.0,
    change_norm=0.5,
    relative_error=0.1,
    factor_mean_error=0.2,
    lower_bound=0.05,
    relative_error_vs_change=0.2,
    factor_mean_error_vs_change=0.4,
    lower_bound_vs_change=0.1,
    gap_closed=NAN,
    rank=4,
    effective_rank=2.5,
)


@pytest.fixture
def driver() -> MachineDriver:
    driver = MachineDriver(run_spec(slots=2))
    driver.start_training("w-0", "w-1")
    return driver


@pytest.fixture
def store(tmp_path: Path):
    store = SqliteStateStore(tmp_path / "db")
    yield store
    store.close()


def event(sequence: int) -> RunEvent:
    return RunEvent(
        sequence=sequence, type=EventType.ROUND_STARTED, time=1.5, detail={"cohort": ["a"]}
    )


def test_a_run_comes_back_as_it_was_stored(tmp_path: Path, driver: MachineDriver):
    store = SqliteStateStore(tmp_path / "db")
    driver.commit("w-0")
    store.commit(Transaction(state=driver.state, clock=12.5, events=(event(1),)))
    store.close()
    again = SqliteStateStore(tmp_path / "db")
    assert again.load_runs() == ((driver.state, 12.5),)
    assert again.events(driver.state.run_id) == (event(1),)
    again.close()


def test_a_transaction_is_all_or_nothing(store: SqliteStateStore, driver: MachineDriver):
    update = driver.update("w-0")
    store.commit(Transaction(state=driver.state, clock=1.0, updates=(update,)))
    changed = replace(driver.state, reason="never stored")
    for twin in (
        replace(update, update_id="x", idempotency_key="other"),
        replace(update, update_id="x", worker="w-1"),
    ):
        with pytest.raises(FedLoraError) as caught:
            store.commit(Transaction(state=changed, clock=2.0, events=(event(1),), updates=(twin,)))
        assert caught.value.reason is Reason.ALREADY_EXISTS
    assert store.load_runs() == ((driver.state, 1.0),)
    assert store.events(driver.state.run_id) == ()
    assert store.updates(driver.state.run_id, 1) == (update,)
    assert store.update_by_key(driver.state.run_id, update.idempotency_key) == update
    assert store.update_by_key(driver.state.run_id, "unknown") is None


def test_two_runs_of_one_name_cannot_be(store: SqliteStateStore, driver: MachineDriver):
    store.commit(Transaction(state=driver.state, clock=0.0))
    with pytest.raises(FedLoraError) as caught:
        store.commit(Transaction(state=replace(driver.state, run_id="run-2"), clock=0.0))
    assert caught.value.reason is Reason.ALREADY_EXISTS


def test_a_published_version_never_changes(store: SqliteStateStore, driver: MachineDriver):
    adapter = AdapterRecord(version=1, round=1, sha256="a" * 64, total_bytes=9, rank=4)
    store.commit(Transaction(state=driver.state, clock=0.0, adapters=(adapter,)))
    with pytest.raises(FedLoraError):
        store.commit(
            Transaction(
                state=driver.state, clock=0.0, adapters=(replace(adapter, sha256="b" * 64),)
            )
        )
    assert store.adapter(driver.state.run_id, 1) == adapter
    assert store.adapter(driver.state.run_id, 2) is None
    assert store.adapters(driver.state.run_id) == (adapter,)


def test_a_certificate_joins_its_report_later_and_keeps_its_nan(
    store: SqliteStateStore, driver: MachineDriver
):
    run_id = driver.state.run_id
    report = RoundReport(
        round=1,
        method="fedit",
        base_version=0,
        adapter_version=1,
        adapter_sha256="a" * 64,
        cohort=("w-0",),
        updates=(),
    )
    store.commit(Transaction(state=driver.state, clock=0.0, reports=(report,)))
    assert store.reports(run_id) == (report,)
    assert store.certified_rounds(run_id) == frozenset()
    certificate = Certificate(method="fedit", overall=ENTRY, modules=(ENTRY,))
    store.commit(Transaction(state=driver.state, clock=0.0, certificates=((1, certificate),)))
    (found,) = store.reports(run_id)
    assert store.certified_rounds(run_id) == {1}
    assert found.certificate is not None
    assert found.certificate.overall.gap_closed != found.certificate.overall.gap_closed
    assert replace(found.certificate.overall, gap_closed=0.0) == replace(ENTRY, gap_closed=0.0)


def test_events_are_paged_from_any_sequence(store: SqliteStateStore, driver: MachineDriver):
    events = tuple(event(i) for i in range(1, 8))
    store.commit(Transaction(state=driver.state, clock=0.0, events=events))
    run_id = driver.state.run_id
    assert store.events(run_id, first_sequence=3, limit=2) == events[2:4]
    assert store.events(run_id, first_sequence=2**64) == ()


def test_every_commit_is_synced_not_only_written(tmp_path: Path):
    store = SqliteStateStore(tmp_path / "db")
    pragma = {
        name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    store.close()
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_state_of_a_newer_program_is_refused_naming_both_versions(tmp_path: Path):
    SqliteStateStore(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FedLoraError, match=f"schema 99.*{SCHEMA_VERSION}"):
        SqliteStateStore(tmp_path / "db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"not a database" * 1000)
    with pytest.raises(FedLoraError) as caught:
        SqliteStateStore(tmp_path / "db")
    assert caught.value.reason is Reason.STATE_CORRUPT


def test_a_state_directory_has_one_owner_and_names_it(tmp_path: Path):
    import os

    lock = StateLock(tmp_path)
    with pytest.raises(FedLoraError, match=str(os.getpid())) as caught:
        StateLock(tmp_path)
    assert caught.value.reason is Reason.STATE_LOCKED
    lock.release()
    StateLock(tmp_path).release()
