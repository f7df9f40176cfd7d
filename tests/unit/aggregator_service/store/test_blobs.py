from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import save
from support.adversarial_files import manifest, tensors

from aggregator_service.store import blobs
from aggregator_service.store.blobs import BlobStore, Swept
from aggregator_service.store.upload_writer import UploadWriter
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason

DATA = save(tensors())
DIGEST = new_digest(DATA).digest()


def open_upload(store: BlobStore, key: str = "k", total: int = len(DATA)) -> UploadWriter:
    return store.open_upload(key, total_bytes=total, manifest=manifest())


def files(root: Path) -> list[str]:
    return sorted(p.name for p in root.rglob("*") if p.is_file())


@pytest.mark.parametrize("cut", range(1, len(DATA), 17))
def test_an_upload_cut_anywhere_goes_on_there_even_after_a_restart(tmp_path: Path, cut: int):
    writer = open_upload(BlobStore(tmp_path))
    writer.write(0, DATA[:cut])
    writer.suspend()
    store = BlobStore(tmp_path)
    assert store.durable_bytes("k") == cut
    writer = open_upload(store)
    assert writer.offset == cut
    writer.write(cut, DATA[cut:])
    assert writer.commit(len(DATA), DIGEST) == DIGEST.hex()
    assert store.path(DIGEST.hex()).read_bytes() == DATA
    assert files(tmp_path) == [DIGEST.hex()]


def test_an_upload_is_written_by_one_stream_at_a_time(tmp_path: Path):
    store = BlobStore(tmp_path)
    first = open_upload(store)
    with pytest.raises(FedLoraError) as caught:
        open_upload(store)
    assert caught.value.reason is Reason.UNAVAILABLE
    open_upload(store, "another").discard()
    first.suspend()
    open_upload(store).discard()


def test_a_partial_file_that_is_no_beginning_of_the_upload_is_begun_anew(tmp_path: Path):
    writer = open_upload(BlobStore(tmp_path))
    writer.write(0, DATA[:100])
    writer.suspend()
    part = next(tmp_path.rglob("*.part"))
    part.write_bytes(b"\xff" * 100)
    writer = open_upload(BlobStore(tmp_path))
    assert writer.offset == 0
    writer.discard()


@pytest.mark.parametrize(
    ("total", "digest", "reason"),
    [(len(DATA), bytes(32), Reason.DIGEST_MISMATCH), (7, DIGEST, Reason.DIGEST_MISMATCH)],
    ids=["digest", "size"],
)
def test_other_bytes_than_the_commit_names_never_become_a_blob(
    tmp_path: Path, total: int, digest: bytes, reason: Reason
):
    writer = open_upload(BlobStore(tmp_path))
    writer.write(0, DATA)
    with pytest.raises(FedLoraError) as caught:
        writer.commit(total, digest)
    assert caught.value.reason is reason
    writer.discard()
    assert files(tmp_path) == []


def test_gaps_and_repeats_are_refused_and_change_nothing(tmp_path: Path):
    writer = open_upload(BlobStore(tmp_path))
    writer.write(0, DATA[:50])
    for offset in (0, 49, 51):
        with pytest.raises(FedLoraError) as caught:
            writer.write(offset, DATA[50:60])
        assert caught.value.reason is Reason.OFFSET_MISMATCH
    writer.write(50, DATA[50:])
    writer.commit(len(DATA), DIGEST)


def test_a_damaged_blob_is_put_aside_and_never_used(tmp_path: Path):
    store = BlobStore(tmp_path)
    made = store.new_temporary()
    made.write_bytes(DATA)
    digest = store.adopt(made)
    store.verify(digest)
    data = bytearray(DATA)
    data[60] ^= 1
    store.path(digest).write_bytes(data)
    with pytest.raises(FedLoraError) as caught:
        store.verify(digest)
    assert caught.value.reason is Reason.STATE_CORRUPT
    assert not store.path(digest).exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_files_in_the_making_are_swept_at_start(tmp_path: Path):
    BlobStore(tmp_path).new_temporary().write_bytes(b"half")
    BlobStore(tmp_path)
    assert files(tmp_path) == []


def test_an_upload_nobody_went_on_with_for_a_week_is_swept_at_start(tmp_path: Path):
    store = BlobStore(tmp_path)
    for key in ("old", "new"):
        writer = open_upload(store, key)
        writer.write(0, DATA[:100])
        writer.suspend()
        if key == "old":
            (part,) = (tmp_path / "uploads").iterdir()
            week_ago = part.stat().st_mtime - 7 * 24 * 3600 - 60
            os.utime(part, (week_ago, week_ago))
    store = BlobStore(tmp_path)
    assert store.durable_bytes("old") == 0
    assert store.durable_bytes("new") == 100


def test_every_bit_of_a_blob_is_under_its_digest(tmp_path: Path):
    store = BlobStore(tmp_path)
    for seed in range(200):
        made = store.new_temporary()
        made.write_bytes(DATA)
        digest = store.adopt(made)
        bit = random.Random(seed).randrange(8 * len(DATA))
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        store.path(digest).write_bytes(data)
        with pytest.raises(FedLoraError) as caught:
            store.verify(digest)
        assert caught.value.reason is Reason.STATE_CORRUPT, f"bit {bit}"


def test_a_missing_blob_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(FedLoraError, match="found no file") as caught:
        BlobStore(tmp_path).verify("a" * 64)
    assert caught.value.reason is Reason.STATE_CORRUPT


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"]
)
def test_only_a_digest_has_a_path(tmp_path: Path, name: str):
    with pytest.raises(AssertionError, match="no BLAKE3"):
        BlobStore(tmp_path).path(name)


def test_equal_files_are_one_blob(tmp_path: Path):
    store = BlobStore(tmp_path)
    for _ in range(2):
        made = store.new_temporary()
        made.write_bytes(DATA)
        store.adopt(made)
    writer = open_upload(store)
    writer.write(0, DATA)
    writer.commit(len(DATA), DIGEST)
    assert files(tmp_path) == [DIGEST.hex()]
    store.verify(DIGEST.hex())


def test_a_frozen_servers_uploads_are_never_those_of_its_successor(tmp_path: Path):
    frozen = open_upload(BlobStore(tmp_path))
    frozen.write(0, DATA[:100])
    successor = BlobStore(tmp_path, keep_uploads=False)
    assert successor.durable_bytes("k") == 0
    writer = open_upload(successor)
    writer.write(0, DATA[:50])
    # It wakes with what its sockets still held, to the very end.
    frozen.write(100, DATA[100:])
    with pytest.raises(FileNotFoundError):
        frozen.commit(len(DATA), DIGEST)
    writer.write(50, DATA[50:])
    assert writer.commit(len(DATA), DIGEST) == DIGEST.hex()
    successor.verify(DIGEST.hex())
    assert files(tmp_path) == [DIGEST.hex()]


# --- sweeping ------------------------------------------------------------------------------


def made(store: BlobStore, text: str) -> str:
    path = store.new_temporary()
    path.write_text(text)
    return store.adopt(path)


def test_a_sweep_takes_what_is_neither_named_nor_pinned(tmp_path: Path):
    store = BlobStore(tmp_path)
    named, pinned, twice, gone, also_gone = (made(store, c * 10) for c in "abcde")
    store.pin(twice)
    for digest in (named, twice, gone, also_gone):
        store.release(digest)
    foreign = store.path(gone).with_name("notes.txt")
    foreign.write_text("somebody else's")
    (tmp_path / "blobs" / "lost+found").mkdir()
    misplaced = tmp_path / "blobs" / "lost+found" / gone
    misplaced.write_text("not where a blob lies")
    assert store.sweep(lambda: {named, "0" * 64}) == Swept(num_files=2, total_bytes=20)
    assert {p.name for p in (tmp_path / "blobs").rglob("*") if p.is_file()} == {
        *(named, pinned, twice),
        *(foreign.name, misplaced.name),
    }
    store.release(twice)
    store.release(pinned)
    assert store.sweep(lambda: [named]).num_files == 2
    assert store.sweep(lambda: [named]) == Swept()
    assert BlobStore(tmp_path).sweep(list).num_files == 1


def test_what_is_made_or_read_while_a_sweep_asks_stays(tmp_path: Path):
    store = BlobStore(tmp_path)
    again, read, gone, early = (made(store, c) for c in "abcd")
    for digest in (again, read, gone, early):
        store.release(digest)
    with store.pinned(early):

        def asked() -> list[str]:
            # Made anew with the same bytes, and named after the database was looked at.
            store.release(made(store, "a"))
            store.pin(read)
            made(store, "new")
            return []

        assert store.sweep(asked).num_files == 1
    assert not store.path(gone).exists()
    for digest, text in ((again, "a"), (read, "b"), (early, "d")):
        assert store.path(digest).read_text() == text


def test_nothing_that_is_named_is_swept_however_makers_and_sweeps_interleave(tmp_path: Path):
    """Four threads commit and drop the same few contents; one sweeps all the time."""
    store, named, lock = BlobStore(tmp_path), Counter[str](), threading.Lock()
    done, swept = threading.Event(), []

    def asked() -> list[str]:
        with lock:
            return [*+named]

    def sweeps() -> None:
        while not done.is_set():
            swept.append(store.sweep(asked).num_files)

    def commits(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(150):
            digest = made(store, f"content {draw.randrange(6)}")
            with lock:
                named[digest] += 1
            store.release(digest)
            assert store.path(digest).exists()
            if draw.random() < 0.9:
                with lock:
                    named[digest] -= 1

    with ThreadPoolExecutor(5) as threads:
        sweeper = threads.submit(sweeps)
        makers = [threads.submit(commits, seed) for seed in range(4)]
        try:
            for maker in makers:
                maker.result(60)
        finally:
            done.set()
        sweeper.result(60)
    assert sum(swept) > 0
    store.sweep(asked)
    assert {p.name for p in (tmp_path / "blobs").rglob("*") if p.is_file()} == {*+named}


def test_a_blob_that_could_not_be_named_is_not_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = BlobStore(tmp_path)
    digest = made(store, "a")
    store.release(digest)

    def refuses(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(blobs, "rename_durably", refuses)
    with pytest.raises(FedLoraError):
        made(store, "a")
    assert store.sweep(list).num_files == 1
