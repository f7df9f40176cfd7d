from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.ports import Transaction
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.errors import FedLoraError, Reason


def many(count: int) -> MachineDriver:
    driver = MachineDriver(run_spec(num_workers=count, evaluate=False))
    driver.start_training(*(f"w-{i:03d}" for i in range(count)))
    return driver


def test_a_commit_writes_what_has_changed_however_many_workers_there_are(tmp_path: Path):
    driver, store = many(200), SqliteStateStore(tmp_path / "db")
    store.commit(Transaction(state=driver.state, clock=1.0))
    for name in ("w-000", "w-117"):
        before = store._db.total_changes
        transition = driver.commit(name)
        store.commit(Transaction(state=transition.state, clock=2.0, updates=transition.updates))
        # The run, the worker, its update in the state and for good, its file, and its task, which
        # is done.
        assert store._db.total_changes - before == 6
    store.close()
    ((again, clock),) = SqliteStateStore(tmp_path / "db").load_runs()
    assert (again, clock) == (driver.state, 2.0)
    assert len(again.assigned) == 198


def test_what_was_not_committed_is_written_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    driver, store = many(3), SqliteStateStore(tmp_path / "db")
    store.commit(Transaction(state=driver.state, clock=1.0))
    lost = driver.commit("w-000")
    with monkeypatch.context() as patch:
        error = FedLoraError(Reason.OUT_OF_SPACE, "no room")

        def full(point: object) -> None:
            raise error

        patch.setattr("aggregator_service.store.sqlite.reach", full)
        with pytest.raises(FedLoraError):
            store.commit(Transaction(state=lost.state, clock=2.0, updates=lost.updates))
    store.commit(Transaction(state=lost.state, clock=2.0, updates=lost.updates))
    store.close()
    assert SqliteStateStore(tmp_path / "db").load_runs() == ((lost.state, 2.0),)


def test_a_process_that_has_not_read_a_run_replaces_all_of_it(tmp_path: Path):
    driver = many(3)
    first = SqliteStateStore(tmp_path / "db")
    first.commit(Transaction(state=driver.state, clock=1.0))
    first.close()
    second = SqliteStateStore(tmp_path / "db")
    fewer = replace(driver.state, assigned={})
    second.commit(Transaction(state=fewer, clock=2.0))
    second.close()
    assert SqliteStateStore(tmp_path / "db").load_runs() == ((fewer, 2.0),)
