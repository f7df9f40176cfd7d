"""Every hostile file is refused at the door, with its reason, quickly, and leaves nothing."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from support.adversarial_files import HOSTILE, Hostile, manifest, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from aggregator_service.store.blobs import BlobStore
from fedlora.errors import FedLoraError
from fedlora.tensors.manifest import DataType
from fedlora.tensors.verifier import PayloadVerifier


def files_below(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


@pytest.mark.parametrize("dtype", list(DataType))
def test_the_honest_file_is_accepted(tmp_path: Path, dtype: DataType):
    data = save(tensors(dtype.torch_dtype))
    writer = BlobStore(tmp_path).open_upload("k", total_bytes=len(data), manifest=manifest(dtype))
    writer.write(0, data)
    sha256 = writer.commit(len(data), hashlib.sha256(data).digest())
    assert files_below(tmp_path) == [BlobStore(tmp_path).path(sha256)]


def send(store: BlobStore, case: Hostile, total: int, chunk_bytes: int) -> None:
    writer = store.open_upload("k", total_bytes=total, manifest=case.manifest)
    try:
        for begin in range(0, len(case.data), chunk_bytes):
            writer.write(begin, case.data[begin : begin + chunk_bytes])
        writer.commit(total, hashlib.sha256(case.data).digest())
    finally:
        writer.discard()


@pytest.mark.parametrize("case", HOSTILE, ids=lambda c: c.name)
@pytest.mark.parametrize("chunk_bytes", [7, 1024**2])
def test_a_hostile_file_is_refused_and_leaves_nothing(
    tmp_path: Path, case: Hostile, chunk_bytes: int
):
    if len(case.data) > 10_000 and chunk_bytes < 10_000:
        chunk_bytes = 4096
    store = BlobStore(tmp_path)
    began = time.process_time()
    with pytest.raises(FedLoraError) as caught:
        send(store, case, max(1, len(case.data)), chunk_bytes)
    assert caught.value.reason is case.reason, str(caught.value)
    assert time.process_time() - began < 1.0, "refusing must stay cheap"
    assert files_below(tmp_path) == []
    assert len(str(caught.value)) < 2000, "no megabyte of a stranger's text in our log"


@settings(
    max_examples=2000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_mutation_of_the_header_gets_through_as_something_else(flips: list[tuple[int, int]]):
    honest = save(tensors())
    data = bytearray(honest)
    for position, value in flips:
        data[position % len(data)] = value
    verifier = PayloadVerifier(manifest(), len(data))
    try:
        verifier.feed(bytes(data))
        verifier.finish()
    except FedLoraError:
        return
    # Accepted: then safetensors must read exactly the run's tensors from it, all finite.
    read = load(bytes(data))
    assert {n: tuple(t.shape) for n, t in read.items()} == {
        t.name: t.shape for t in manifest().tensors
    }
    assert all(bool(t.isfinite().all()) for t in read.values())
