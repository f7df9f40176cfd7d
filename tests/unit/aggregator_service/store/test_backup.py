from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import run_spec

from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord, WorkerRecord
from aggregator_service.store.backup import _copy_database, back_up
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.sqlite import DATABASE_NAME, SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import WorkerState
from fedlora.runs.tasks import Capabilities

STATE = RunState(run_id="r", spec=run_spec(), created_at=0.0)


class Server:
    """A store and blobs in a state directory, as a server holds them open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)
        self.store = SqliteStateStore(root / DATABASE_NAME)
        self.count = 0

    def blob(self, text: str) -> str:
        path = self.blobs.new_temporary()
        path.write_text(text * 1000)
        return self.blobs.adopt(path)

    def commit(self, *, named_only_by_state: bool = False) -> set[str]:
        """Commits an adapter with memory and an update; returns the digests it names."""
        self.count += 1
        number = self.count
        files = [self.blob(f"{kind} {number}") for kind in ("adapter", "memory", "update")]
        adapter = AdapterRecord(
            version=number,
            round=number,
            digest=files[0],
            state_digest=files[1],
            total_bytes=9,
            rank=4,
        )
        update = UpdateRecord(
            update_id=f"u-{number}",
            round=number,
            worker="w",
            idempotency_key=f"k-{number}",
            digest=files[2],
            total_bytes=9,
            base_version=0,
            rank=4,
            num_examples=1,
        )
        state = replace(STATE, adapter=adapter, updates={"w": update})
        rows = {} if named_only_by_state else {"adapters": (adapter,), "updates": (update,)}
        self.store.commit(Transaction(state=state, clock=float(number), **rows))
        return set(files)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "state")
    yield server
    server.store.close()


def files(root: Path) -> set[str]:
    return {p.name for p in root.rglob("*") if p.is_file()}


def test_a_backup_is_a_state_directory_of_its_own(server: Server, tmp_path: Path):
    named = server.commit() | server.commit() | server.commit(named_only_by_state=True)
    server.blob("named by nobody")
    (server.root / "uploads" / "half.part").write_text("half")
    told: list[tuple[int, int]] = []
    done = back_up(
        server.root, tmp_path / "deep" / "out", on_progress=lambda *now: told.append(now)
    )
    out = tmp_path / "deep" / "out"
    assert files(out) == named | {DATABASE_NAME}
    assert (done.runs, done.num_blobs) == (("test",), 9)
    assert done.total_bytes == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert len(told) == 9
    assert told[-1][0] == told[-1][1] > 0
    for name in named:
        copy, original = BlobStore(out).path(name), server.blobs.path(name)
        assert copy.read_bytes() == original.read_bytes()
        assert not copy.samefile(original)
    before = server.store.load_runs()
    restored = SqliteStateStore(out / DATABASE_NAME)
    assert restored.load_runs() == before
    assert restored.updates("r", 2) == server.store.updates("r", 2)
    restored.commit(Transaction(state=STATE, clock=99.0))
    restored.close()
    # Neither server has to do with the other.
    assert server.store.load_runs() == before
    server.commit()


def test_what_workers_call_themselves_and_their_metrics_names_no_blob(
    server: Server, tmp_path: Path
):
    named = server.commit()
    ((state, _),) = server.store.load_runs()
    assert state.adapter is not None
    adapter = replace(state.adapter, version=2, weights={"site_digest": 0.75, "digest": 0.25})
    update = replace(state.updates["w"], metrics={"loss_digest": 0.5})
    state = replace(state, adapter=adapter, updates={"site_digest": update})
    server.store.commit(Transaction(state=state, clock=2.0, adapters=(adapter,)))
    back_up(server.root, tmp_path / "out")
    assert files(tmp_path / "out") == named | {DATABASE_NAME}


def test_sessions_are_left_out(server: Server, tmp_path: Path):
    worker = WorkerRecord(
        name="w",
        state=WorkerState.READY,
        epoch=3,
        session_hash="5e" * 32,
        instance_id="i",
        capabilities=Capabilities(device_name="cpu"),
        rank=4,
        confirmed=True,
    )
    state = replace(STATE, workers={"w": worker})
    server.store.commit(Transaction(state=state, clock=1.0))
    back_up(server.root, tmp_path / "out")
    copy = SqliteStateStore(tmp_path / "out" / DATABASE_NAME)
    ((found, _),) = copy.load_runs()
    copy.close()
    assert found == replace(state, workers={"w": replace(worker, session_hash="")})
    assert server.store.load_runs() == ((state, 1.0),)


def test_a_server_that_has_ended_can_be_backed_up_too(server: Server, tmp_path: Path):
    named = server.commit()
    server.store.close()
    back_up(server.root, tmp_path / "out")
    assert files(tmp_path / "out") == named | {DATABASE_NAME}


def test_every_backup_taken_while_the_server_commits_is_whole(server: Server, tmp_path: Path):
    server.commit()
    outs = [tmp_path / f"backup-{i}" for i in range(5)]
    with ThreadPoolExecutor(1) as thread:
        backups = [thread.submit(back_up, server.root, out) for out in outs]
        while not backups[-1].done():
            server.commit()
    for backup in backups:
        backup.result()
    seen = []
    for out in outs:
        store, blobs = SqliteStateStore(out / DATABASE_NAME), BlobStore(out)
        ((state, clock),) = store.load_runs()
        assert state.adapter is not None
        assert clock == state.adapter.version
        for version in range(1, int(clock) + 1):
            for update in store.updates("r", version):
                blobs.verify(update.digest)
            adapter = store.adapter("r", version)
            assert adapter is not None
            blobs.verify(adapter.digest)
            blobs.verify(adapter.state_digest)
        seen.append(clock)
        store.close()
    assert len(set(seen)) >= 3, "the server did not commit meanwhile"


def refusal(state_dir: Path, out: Path) -> FedLoraError:
    """Why there is no backup; nothing of it is left."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(FedLoraError) as caught:
        back_up(state_dir, out)
    assert sorted(out.parent.iterdir()) == before
    return caught.value


def test_what_is_dropped_while_it_is_copied_is_left_out(server: Server, tmp_path: Path):
    first, second = server.commit(), server.commit()
    update, memory = (server.blob(f"{kind} 1") for kind in ("update", "memory"))
    dropped = []

    def drop(*_: int) -> None:
        if not dropped:
            dropped.append(True)
            server.store.drop_updates("r", [1])
            server.commit()
            server.blobs.path(update).unlink()

    out = tmp_path / "out"
    done = back_up(server.root, out, on_progress=drop)
    third = files(out) - first - second
    assert len(third) == 4, "the database was copied again, with what came after"
    assert files(out) == (first | second | third) - {update}
    assert memory in files(out), "the second round was built on it"
    assert done.num_blobs == 8
    restored = SqliteStateStore(out / DATABASE_NAME)
    assert restored.kept_rounds("r") == (2, 3)
    assert [u.worker for u in restored.updates("r", 1)] == ["w"]
    restored.close()


def test_bytes_that_are_dropped_and_sent_again_are_no_damage(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Contents have one name, and a worker that learns nothing sends the same ones each round."""
    server.commit()
    server.commit()
    (first,) = server.store.updates("r", 1)
    copies = 0

    def copied(source: Path, target: Path) -> object:
        nonlocal copies
        copies += 1
        if copies == 2:
            server.blob("update 1")
            again = replace(first, round=3, update_id="again", idempotency_key="again")
            server.store.commit(Transaction(state=STATE, clock=3.0, updates=(again,)))
        found = _copy_database(source, target)
        if copies == 1:
            server.store.drop_updates("r", [1])
            server.blobs.path(first.digest).unlink()
        return found

    monkeypatch.setattr("aggregator_service.store.backup._copy_database", copied)
    back_up(server.root, tmp_path / "out")
    BlobStore(tmp_path / "out").verify(first.digest)


def test_what_an_earlier_look_named_is_not_left_in_the_backup(server: Server, tmp_path: Path):
    server.commit()
    server.commit()
    update = {n: server.blob(f"update {n}") for n in (1, 2)}
    seen = []

    def drop(done: int, total: int) -> None:
        seen.append(done)
        # Both are copied or about to be: one of the two copies is too much by then.
        if len(seen) == 3:
            server.store.drop_updates("r", [1, 2])
            server.commit()
            for digest in update.values():
                server.blobs.path(digest).unlink()

    back_up(server.root, tmp_path / "out", on_progress=drop)
    assert not files(tmp_path / "out") & {*update.values()}


def test_the_state_of_an_older_program_is_its_own_to_back_up(server: Server, tmp_path: Path):
    server.commit()
    db = sqlite3.connect(server.root / DATABASE_NAME)
    db.execute("PRAGMA user_version = 4")
    db.close()
    error = refusal(server.root, tmp_path / "out")
    assert error.reason is Reason.STATE_CORRUPT
    assert "schema 4, this program backs up 5" in str(error)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_ends_the_backup_by_name(server: Server, tmp_path: Path, damage: str):
    digest = sorted(server.commit())[1]
    path = server.blobs.path(digest)
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[500] ^= 1
        path.write_bytes(data if damage == "changed" else data[:500])
    error = refusal(server.root, tmp_path / "out")
    assert error.reason is Reason.STATE_CORRUPT
    assert digest in str(error)


def test_a_folder_that_holds_something_is_left_alone(server: Server, tmp_path: Path):
    (tmp_path / "out").mkdir()
    back_up(server.root, tmp_path / "out")
    kept = files(tmp_path / "out")
    server.commit()
    assert refusal(server.root, tmp_path / "out").reason is Reason.ALREADY_EXISTS
    assert files(tmp_path / "out") == kept
    (tmp_path / "file").write_text("mine")
    assert refusal(server.root, tmp_path / "file").reason is Reason.ALREADY_EXISTS


def test_a_folder_without_state_is_named(tmp_path: Path):
    error = refusal(tmp_path / "nowhere", tmp_path / "out")
    assert error.reason is Reason.NOT_FOUND
    assert "nowhere" in str(error)


def test_a_damaged_database_is_not_copied(server: Server, tmp_path: Path):
    for _ in range(20):
        server.commit()
    server.store.close()
    path = server.root / DATABASE_NAME
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    error = refusal(server.root, tmp_path / "out")
    assert error.reason is Reason.STATE_CORRUPT
    assert str(path) in str(error)


def test_the_state_of_a_newer_program_is_not_copied_in_part(server: Server, tmp_path: Path):
    db = sqlite3.connect(server.root / DATABASE_NAME)
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert "schema 99" in str(refusal(server.root, tmp_path / "out"))


def test_a_full_disk_leaves_nothing_behind(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.commit()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert refusal(server.root, tmp_path / "out").reason is Reason.OUT_OF_SPACE


def test_all_of_it_is_synced_before_it_has_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    named = server.commit()
    calls: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        calls.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        sync(handle)

    def noted_rename(source: Path, target: Path) -> None:
        calls.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    back_up(server.root, tmp_path / "out")
    end = calls.index(("rename", str(tmp_path / "out")))
    synced = {Path(path).name for call, path in calls[:end]}
    assert named | {DATABASE_NAME, "blobs"} | {name[:2] for name in named} <= synced
    assert calls[end + 1 :] == [("sync", str(tmp_path))]
