"""What the disk, the commit and other threads can do to an upload."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import save
from support.adversarial_files import B, manifest, tensors

from aggregator_service.store import files as files_module
from aggregator_service.store import upload_writer
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.upload_writer import UploadWriter
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType

DATA = save(tensors())
DIGEST = new_digest(DATA).digest()


def open_upload(store: BlobStore, key: str = "k") -> UploadWriter:
    return store.open_upload(key, total_bytes=len(DATA), manifest=manifest())


def files(root: Path) -> list[str]:
    return sorted(p.name for p in root.rglob("*") if p.is_file())


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# --- durability -----------------------------------------------------------------------------


def test_a_blob_is_synced_then_renamed_then_its_folder_is_synced(tmp_path: Path, monkeypatch):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writer.write(0, DATA)
    calls: list[tuple[str, Path]] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        calls.append(("sync", Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    blob = store.path(writer.commit(len(DATA), DIGEST))
    (part,) = {path for call, path in calls if path.parent == tmp_path / "uploads"}
    assert calls == [
        ("sync", part),
        ("rename", blob),
        ("sync", blob.parent),
    ]


def test_an_adopted_file_becomes_a_blob_in_the_same_order(tmp_path: Path, monkeypatch):
    store = BlobStore(tmp_path)
    made = store.new_temporary()
    made.write_bytes(DATA)
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (calls.append("sync"), sync(h)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    assert store.adopt(made) == DIGEST.hex()
    assert calls == ["sync", "rename", "sync"]
    assert files(tmp_path) == [DIGEST.hex()]


def test_a_suspended_upload_is_durable(tmp_path: Path, monkeypatch):
    writer = open_upload(BlobStore(tmp_path))
    writer.write(0, DATA[:100])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    writer.suspend()
    assert len(synced) == 1


def test_the_disk_is_handed_every_byte_but_the_last_few_while_they_come(
    tmp_path: Path, monkeypatch
):
    parts: list[tuple[int, int]] = []
    monkeypatch.setattr(upload_writer, "_WRITEBACK_BYTES", 100)
    monkeypatch.setattr(upload_writer, "start_writeback", lambda _, *part: parts.append(part))
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    for begin in range(0, 240, 30):
        writer.write(begin, DATA[begin : begin + 30])
    writer.suspend()
    assert parts == [(0, 120), (120, 120)]
    writer = open_upload(store)
    writer.write(240, DATA[240:])
    assert parts[2:] == [(240, len(DATA) - 240)]
    writer.commit(len(DATA), DIGEST)


def test_a_system_without_early_writeback_stores_the_same(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_bytes(DATA)
    for has_it in (True, False):
        if not has_it:
            monkeypatch.setattr(files_module, "_sync_file_range", lambda: None)
        with (tmp_path / "file").open("rb+") as file:
            files_module.start_writeback(file.fileno(), 0, len(DATA))
    assert (tmp_path / "file").read_bytes() == DATA


# --- a disk that is full or fails -----------------------------------------------------------


@pytest.mark.parametrize("room", [0, 50, 100, 173])
def test_what_fits_on_a_full_disk_is_kept_and_the_upload_goes_on_there(tmp_path: Path, room: int):
    store = BlobStore(tmp_path)
    writer = open_upload(store)

    def fill() -> None:
        for begin in range(0, len(DATA), 25):
            writer.write(begin, DATA[begin : begin + 25])

    with largest_file(room), pytest.raises(FedLoraError) as caught:
        fill()
    assert caught.value.reason is Reason.OUT_OF_SPACE
    writer.suspend()
    writer = open_upload(store)
    assert writer.offset == room
    writer.write(room, DATA[room:])
    assert writer.commit(len(DATA), DIGEST) == DIGEST.hex()
    store.verify(DIGEST.hex())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, Reason.OUT_OF_SPACE),
        (errno.EDQUOT, Reason.OUT_OF_SPACE),
        (errno.EIO, Reason.DISK_FAILED),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_commit_that_fails_leaves_nothing_that_could_be_trusted(
    tmp_path: Path, monkeypatch, call: str, code: int, reason: Reason
):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writer.write(0, DATA)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(code))
        with pytest.raises(FedLoraError) as caught:
            writer.commit(len(DATA), DIGEST)
    assert caught.value.reason is reason
    assert files(tmp_path) == []
    # The disk is well again: the same upload, from its beginning.
    writer = open_upload(store)
    assert writer.offset == 0
    writer.write(0, DATA)
    writer.commit(len(DATA), DIGEST)
    store.verify(DIGEST.hex())


def test_a_partial_file_that_could_not_be_synced_is_never_resumed(tmp_path: Path, monkeypatch):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writer.write(0, DATA[:100])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(errno.EIO))
        writer.suspend()
    assert files(tmp_path) == []
    assert open_upload(store).offset == 0


def test_an_error_that_has_no_name_here_is_not_renamed(tmp_path: Path, monkeypatch):
    writer = open_upload(BlobStore(tmp_path))
    writer.write(0, DATA)
    monkeypatch.setattr(os, "fsync", failing(errno.EBADF))
    with pytest.raises(OSError, match="Bad file"):
        writer.commit(len(DATA), DIGEST)


# --- wrong bytes and wrong ends -------------------------------------------------------------


def test_wrong_bytes_end_the_upload_and_free_its_key(tmp_path: Path):
    store = BlobStore(tmp_path)
    bad = tensors()
    bad[B][0, 0] = float("nan")
    writer = open_upload(store)
    with pytest.raises(FedLoraError) as caught:
        writer.write(0, save(bad))
    assert caught.value.reason is Reason.NOT_FINITE
    assert files(tmp_path) == []
    with pytest.raises(FedLoraError) as caught:
        writer.write(0, DATA)
    assert caught.value.reason is Reason.UPLOAD_INCOMPLETE
    open_upload(store).discard()


def test_a_commit_before_the_last_byte_can_be_made_good(tmp_path: Path):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writer.write(0, DATA[:-1])
    with pytest.raises(FedLoraError) as caught:
        writer.commit(len(DATA), DIGEST)
    assert caught.value.reason is Reason.UPLOAD_INCOMPLETE
    assert not store.path(DIGEST.hex()).exists()
    writer.write(len(DATA) - 1, DATA[-1:])
    assert writer.commit(len(DATA), DIGEST) == DIGEST.hex()


@pytest.mark.parametrize("end", ["suspend", "discard", "commit"])
def test_what_comes_after_the_end_changes_nothing(tmp_path: Path, end: str):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writer.write(0, DATA)
    if end == "commit":
        writer.commit(len(DATA), DIGEST)
    else:
        getattr(writer, end)()
    before = files(tmp_path)
    for late in (
        lambda: writer.write(len(DATA), b"x"),
        lambda: writer.commit(len(DATA), DIGEST),
    ):
        with pytest.raises(FedLoraError) as caught:
            late()
        assert caught.value.reason is Reason.UPLOAD_INCOMPLETE
    second = open_upload(store, "k")
    writer.suspend()
    writer.discard()
    with pytest.raises(FedLoraError) as caught:
        open_upload(store)
    assert caught.value.reason is Reason.UNAVAILABLE, "the late end must not free another's key"
    second.suspend()
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "other",
    [
        lambda: {"total_bytes": len(DATA) - 8, "manifest": manifest()},
        lambda: {"total_bytes": len(DATA) + 8, "manifest": manifest()},
        lambda: {"total_bytes": len(DATA) - 50, "manifest": manifest(DataType.BF16)},
    ],
)
def test_a_partial_file_of_another_size_or_manifest_is_begun_anew(tmp_path: Path, other):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writer.write(0, DATA[:300])
    writer.suspend()
    writer = store.open_upload("k", **other())
    assert writer.offset == 0
    writer.suspend()
    assert files(tmp_path) == []


def test_a_size_that_no_such_payload_has_is_refused_before_any_file_is_made(tmp_path: Path):
    store = BlobStore(tmp_path)
    for total in (0, 1, 107, 2**20 + 109, 2**40, 2**63, 2**64 - 1):
        with pytest.raises(FedLoraError) as caught:
            store.open_upload("k", total_bytes=total, manifest=manifest())
        assert caught.value.reason is Reason.INVALID_PAYLOAD
    assert files(tmp_path) == []
    open_upload(store).discard()


# --- threads --------------------------------------------------------------------------------


def test_of_many_streams_of_one_upload_one_gets_it(tmp_path: Path):
    store = BlobStore(tmp_path)
    together = threading.Barrier(8)

    def race(_: int) -> UploadWriter | Reason:
        together.wait()
        try:
            return open_upload(store)
        except FedLoraError as error:
            return error.reason

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(race, range(8)))
    writers = [r for r in results if isinstance(r, UploadWriter)]
    assert len(writers) == 1
    assert results.count(Reason.UNAVAILABLE) == 7
    writers[0].discard()


@pytest.mark.parametrize(("end", "kept"), [("suspend", 100), ("discard", 0)])
def test_a_stream_cancelled_in_mid_write_ends_after_the_write(
    tmp_path: Path, monkeypatch, end: str, kept: int
):
    store = BlobStore(tmp_path)
    writer = open_upload(store)
    writing, closed = threading.Event(), threading.Event()
    write, close = os.write, os.close
    closed_too_early: list[bool] = []

    def slow(handle: int, data: memoryview) -> int:
        writing.set()
        # Long enough for an end that does not wait its turn; one that does never comes.
        closed_too_early.append(closed.wait(0.3))
        return write(handle, data)

    def noted(handle: int) -> None:
        close(handle)
        closed.set()

    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as threads:
        patched.setattr(os, "write", slow)
        patched.setattr(os, "close", noted)
        last = threads.submit(writer.write, 0, DATA[:100])
        assert writing.wait(30)
        ending = threads.submit(getattr(writer, end))
        last.result(30)
        ending.result(30)
    assert closed_too_early == [False]
    assert open_upload(store).offset == kept
