"""Streams that lose, repeat or reorder messages: nothing of them is ever committed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from aggregator_service.store.blobs import BlobStore
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import TensorManifest
from fedlora.wire.stream import ChunkSequence

TENSORS = {"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(1))}
MANIFEST = TensorManifest.of(TENSORS)
PAYLOAD = save(TENSORS)
DIGEST = new_digest(PAYLOAD).digest()
SIZE = -(-len(PAYLOAD) // 40)
CHUNKS = tuple((o, PAYLOAD[o : o + SIZE]) for o in range(0, len(PAYLOAD), SIZE))
assert len(CHUNKS) == 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("state"))


def deliver(store: BlobStore, chunks: Iterable[tuple[int, bytes]]) -> str:
    """One stream and its commit, ended at the first error as the server ends it."""
    writer = store.open_upload("k", total_bytes=len(PAYLOAD), manifest=MANIFEST)
    try:
        for offset, data in chunks:
            writer.write(offset, data)
        return writer.commit(len(PAYLOAD), DIGEST)
    finally:
        writer.discard()


def assert_refused(store: BlobStore, chunks: Iterable[tuple[int, bytes]], why: object) -> None:
    with pytest.raises(FedLoraError) as caught:
        deliver(store, chunks)
    assert caught.value.reason in (Reason.OFFSET_MISMATCH, Reason.UPLOAD_INCOMPLETE), why
    assert not store.path(DIGEST.hex()).exists(), why


def test_the_whole_stream_in_order_is_committed(tmp_path: Path):
    assert deliver(BlobStore(tmp_path), CHUNKS) == DIGEST.hex()


@pytest.mark.parametrize("lost", [1, 2])
def test_a_stream_that_lost_messages_is_never_committed(store: BlobStore, lost: int):
    for gone in itertools.combinations(range(40), lost):
        assert_refused(store, [c for i, c in enumerate(CHUNKS) if i not in gone], gone)


def test_no_three_messages_can_be_lost_unnoticed():
    for gone in itertools.combinations(range(40), 3):
        sequence = ChunkSequence(total_bytes=len(PAYLOAD), max_chunk_bytes=SIZE)
        left = [c for i, c in enumerate(CHUNKS) if i not in gone]
        accepted = 0
        for offset, data in left:
            try:
                sequence.accept(offset, len(data))
            except FedLoraError as error:
                assert error.reason is Reason.OFFSET_MISMATCH  # noqa: PT017
                break
            accepted += 1
        assert accepted == gone[0]
        assert sequence.offset == gone[0] * SIZE < len(PAYLOAD)


@pytest.mark.parametrize("repeated", range(40))
def test_a_stream_that_repeats_a_message_is_never_committed(store: BlobStore, repeated: int):
    again = (*CHUNKS[: repeated + 1], CHUNKS[repeated], *CHUNKS[repeated + 1 :])
    assert_refused(store, again, repeated)


def test_no_other_order_is_ever_committed(store: BlobStore):
    for seed in range(200):
        order = random.Random(seed).sample(CHUNKS, 40)
        assert order != list(CHUNKS)
        assert_refused(store, order, f"seed {seed}")


spans = st.tuples(st.integers(0, len(PAYLOAD)), st.integers(0, 3 * SIZE))


@settings(max_examples=300, deadline=None)
@given(st.lists(spans | st.just((-1, 0)), max_size=60))
def test_a_client_that_ignores_every_refusal_gets_its_exact_bytes_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[int, int]]
):
    store = BlobStore(tmp_path_factory.mktemp("state"))
    writer = store.open_upload("k", total_bytes=len(PAYLOAD), manifest=MANIFEST)
    for begin, size in sent:
        # -1 stands for the one chunk that would be right.
        offset = writer.offset if begin < 0 else begin
        data = PAYLOAD[offset : offset + (size or SIZE)]
        try:
            writer.write(offset, data)
        except FedLoraError as error:
            assert error.reason in (Reason.OFFSET_MISMATCH, Reason.INVALID_ARGUMENT)  # noqa: PT017
    try:
        writer.commit(len(PAYLOAD), DIGEST)
    except FedLoraError:
        assert not store.path(DIGEST.hex()).exists()
    else:
        assert store.path(DIGEST.hex()).read_bytes() == PAYLOAD
    writer.discard()


@pytest.mark.parametrize("cut", [1 + i * (len(PAYLOAD) - 1) // 25 for i in range(25)])
def test_an_upload_cut_anywhere_is_no_blob_and_resumes_without_sending_a_byte_twice(
    tmp_path: Path, cut: int
):
    first = BlobStore(tmp_path)
    torn = first.open_upload("k", total_bytes=len(PAYLOAD), manifest=MANIFEST)
    torn.write(0, PAYLOAD[:cut])
    # The process is killed: nobody ends the writer, and the next server finds what it left.
    store = BlobStore(tmp_path)
    assert not store.path(DIGEST.hex()).exists()
    assert store.durable_bytes("k") == cut
    writer = store.open_upload("k", total_bytes=len(PAYLOAD), manifest=MANIFEST)
    assert writer.offset == cut
    writer.write(cut, PAYLOAD[cut:])
    assert writer.commit(len(PAYLOAD), DIGEST) == DIGEST.hex()
    assert store.durable_bytes("k") == 0
    store.verify(DIGEST.hex())
    torn.discard()
    store.verify(DIGEST.hex())
