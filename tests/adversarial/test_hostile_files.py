"""Every hostile file is refused at the door, with its reason, quickly, and leaves nothing."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from support.adversarial_files import FILES, HOSTILE, Hostile, entries, manifest, table, tensors

from aggregator_service.store.blobs import BlobStore
from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import FLOATS, DataType
from fedlora.tensors.safetensors_io import decode
from fedlora.tensors.verifier import PayloadVerifier

# Less than 50 ms in fact; the bound has to hold on any machine under any load.
MOST_CPU_SECONDS = 1.0
MOST_MEMORY_BYTES = 32 * 1024**2


def files_below(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def send(store: BlobStore, case: Hostile, chunk_bytes: int) -> None:
    """What a server does with an upload of these bytes."""
    writer = store.open_upload("k", total_bytes=len(case.data), manifest=case.manifest)
    try:
        for begin in range(0, len(case.data), chunk_bytes):
            writer.write(begin, case.data[begin : begin + chunk_bytes])
        writer.commit(len(case.data), new_digest(case.data).digest())
    finally:
        writer.discard()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_honest_file_is_accepted(tmp_path: Path, dtype: DataType):
    data = save(tensors(dtype.torch_dtype))
    writer = BlobStore(tmp_path).open_upload("k", total_bytes=len(data), manifest=manifest(dtype))
    writer.write(0, data)
    digest = writer.commit(len(data), new_digest(data).digest())
    assert files_below(tmp_path) == [BlobStore(tmp_path).path(digest)]


@pytest.mark.parametrize("case", HOSTILE, ids=lambda c: ascii(c.name))
@pytest.mark.parametrize("chunk_bytes", [7, 1024**2])
def test_a_hostile_file_is_refused_and_leaves_nothing(
    tmp_path: Path, case: Hostile, chunk_bytes: int
):
    if len(case.data) > 10_000 and chunk_bytes < 10_000:
        chunk_bytes = 4096
    store = BlobStore(tmp_path)
    began = time.process_time()
    with pytest.raises(FedLoraError) as caught:
        send(store, case, chunk_bytes)
    assert time.process_time() - began < MOST_CPU_SECONDS, "refusing must stay cheap"
    assert caught.value.reason is case.reason, str(caught.value)
    assert files_below(tmp_path) == []
    text = str(caught.value)
    assert len(text) < 2000, "no megabyte of a stranger's text in our log"
    assert text.isprintable(), "no control character of a stranger's in our log"


@pytest.mark.parametrize("case", FILES, ids=lambda c: ascii(c.name))
def test_a_worker_that_reads_a_hostile_file_refuses_it_for_the_same_reason(case: Hostile):
    with pytest.raises(FedLoraError) as caught:
        decode(case.data, case.manifest)
    assert caught.value.reason is case.reason


@pytest.mark.parametrize(
    "case", [c for c in FILES if len(c.data) > 500_000], ids=lambda c: ascii(c.name)
)
def test_refusing_a_large_header_needs_no_memory_of_its_kind(case: Hostile):
    tracemalloc.start()
    try:
        with pytest.raises(FedLoraError):
            feed(PayloadVerifier(case.manifest, len(case.data)), case.data, 4096)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY_BYTES, f"{peak / 2**20:.1f} MiB"


def test_the_readme_lists_every_file_with_its_reason():
    readme = (Path(__file__).parent / "README.md").read_text()
    for case in HOSTILE[len(FILES) :]:
        assert case.reason is Reason.NOT_FINITE
    if safetensors.__version__.startswith("0.8."):
        assert table(library=True) in readme, "python -m support.adversarial_files prints the table"
    shortened = [line.rpartition(" | ")[0] for line in readme.splitlines() if line[:1] == "|"]
    assert [line.rpartition(" |")[0] for line in table(library=False).splitlines()] == shortened


# --- mutations of an honest file ------------------------------------------------------------


def feed(verifier: PayloadVerifier, data: bytes, chunk_bytes: int) -> None:
    for begin in range(0, len(data), chunk_bytes):
        verifier.feed(data[begin : begin + chunk_bytes])
    verifier.finish()


def check_is_refused_or_read_as_declared(data: bytes, chunk_bytes: int) -> None:
    """Verifier and reader agree; what they accept is what an independent reader reads."""
    refusal, read = None, {}
    try:
        read = decode(data, manifest())
    except FedLoraError as error:
        refusal = error
    if refusal is not None:
        with pytest.raises(FedLoraError) as caught:
            feed(PayloadVerifier(manifest(), len(data)), data, chunk_bytes)
        assert caught.value.reason is refusal.reason
        return
    assert {n: tuple(t.shape) for n, t in read.items()} == {
        t.name: t.shape for t in manifest().tensors
    }
    reference = load(data)
    for name, tensor in read.items():
        assert tensor.numpy().tobytes() == reference[name].numpy().tobytes()
    finite = all(bool(t.isfinite().all()) for t in read.values())
    verifier = PayloadVerifier(manifest(), len(data))
    if finite:
        feed(verifier, data, chunk_bytes)
    else:
        with pytest.raises(FedLoraError) as caught:
            feed(verifier, data, chunk_bytes)
        assert caught.value.reason is Reason.NOT_FINITE


HONEST = save(tensors())
(HEADER_BYTES,) = struct.unpack("<Q", HONEST[:8])

cuts = st.integers(0, len(HONEST))
edits = st.one_of(
    st.tuples(st.just("put"), cuts, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), cuts, st.sampled_from([b" ", b"{", b"}", b",", b'"', b"0", b"e"])),
    st.tuples(st.just("delete"), cuts, st.integers(1, 20)),
    st.tuples(st.just("repeat"), cuts, st.integers(1, 80)),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(edits, min_size=1, max_size=4), st.integers(1, 400))
def test_no_mutation_of_the_bytes_gets_through_as_something_else(
    changes: list[tuple[str, int, Any]], chunk_bytes: int
):
    data = bytearray(HONEST)
    for kind, at, what in changes:
        if kind == "put":
            data[at : at + len(what)] = what
        elif kind == "insert":
            data[at:at] = what
        elif kind == "delete":
            del data[at : at + what]
        else:
            data[at:at] = data[at : at + what]
    check_is_refused_or_read_as_declared(bytes(data), chunk_bytes)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 120),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["F32", "F16", "BF16", "F64", "dtype", "shape", "data_offsets", "bias"]),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from([*(t.name for t in manifest().tensors), "__metadata__", "evil"])
fields = st.sampled_from([None, "dtype", "shape", "data_offsets", "evil"])


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(names, fields, trees), min_size=1, max_size=3), st.integers(1, 400))
@example([("__metadata__", None, {"x": "y"})], 64)
def test_no_mutation_of_the_header_gets_through_as_something_else(
    changes: list[tuple[str, str | None, Any]], chunk_bytes: int
):
    header = entries()
    for name, field, value in changes:
        if field is None or not isinstance(header.get(name), dict):
            header[name] = value
        else:
            header[name][field] = value
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + HONEST[8 + HEADER_BYTES :]
    check_is_refused_or_read_as_declared(data, chunk_bytes)
