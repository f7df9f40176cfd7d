from __future__ import annotations

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.header import encode_header
from fedlora.tensors.manifest import FLOATS, DataType, TensorInfo, TensorManifest
from fedlora.tensors.verifier import PayloadVerifier

# Spans that are no multiple of a block, of a vector register or of each other.
SHAPES = {"a": (3, 7), "b": (1,), "c": (1031,), "d": (5, 2, 2)}


def sample(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}


def verify(data: bytes, manifest: TensorManifest, chunk_bytes: int) -> PayloadVerifier:
    verifier = PayloadVerifier(manifest, len(data))
    for begin in range(0, len(data), chunk_bytes):
        verifier.feed(data[begin : begin + chunk_bytes])
    return verifier


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 7, 64, 1000, 10**6])
def test_an_honest_payload_passes_whatever_its_chunks(dtype: DataType, chunk_bytes: int):
    tensors = sample(dtype.torch_dtype)
    header = verify(save(tensors), TensorManifest.of(tensors), chunk_bytes).finish()
    assert {s.info.name for s in header.spans} == set(SHAPES)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk_bytes", [3, 64, 10**6])
@pytest.mark.parametrize("name", SHAPES)
def test_the_element_that_is_no_number_is_named(dtype: DataType, chunk_bytes: int, name: str):
    size = sample(dtype.torch_dtype)[name].numel()
    for index in {0, size // 2, size - 1}:
        for bad in (float("nan"), float("inf"), float("-inf")):
            tensors = sample(dtype.torch_dtype)
            tensors[name].view(-1)[index] = bad
            with pytest.raises(FedLoraError) as caught:
                verify(save(tensors), TensorManifest.of(tensors), chunk_bytes)
            assert caught.value.reason is Reason.NOT_FINITE
            assert f"tensor '{name}' holds {bad} at element {index}" in str(caught.value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_value_that_is_no_number_is_found_at_every_place_of_a_block(dtype: DataType):
    honest = sample(dtype.torch_dtype)
    manifest = TensorManifest.of(honest)
    for index in range(honest["c"].numel()):
        tensors = {**honest, "c": honest["c"].clone()}
        tensors["c"][index] = float("nan") if index % 2 else float("-inf")
        with pytest.raises(FedLoraError, match=f"at element {index}$|at element {index}\\."):
            verify(save(tensors), manifest, 10**6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_of_several_the_first_is_named(dtype: DataType):
    tensors = sample(dtype.torch_dtype)
    tensors["c"][700] = float("inf")
    tensors["c"][40] = float("nan")
    with pytest.raises(FedLoraError, match="'c' holds nan at element 40"):
        verify(save(tensors), TensorManifest.of(tensors), 10**6)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0xFF800001, 0xFFFFFFFF, 0x7FFFFFFF])
def test_every_kind_of_nan_is_one(bits: int):
    values = torch.zeros(40)
    values.view(torch.int32)[17] = bits - 2**32 if bits >= 2**31 else bits
    with pytest.raises(FedLoraError, match="holds nan at element 17"):
        verify(save({"a": values}), TensorManifest.of({"a": values}), 64)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_the_smallest_and_negative_zero_are_numbers(dtype: DataType):
    limits = torch.finfo(dtype.torch_dtype)
    values = [limits.max, limits.min, limits.tiny, limits.tiny / 2, 0.0, -0.0]
    tensors = {"a": torch.tensor(values, dtype=dtype.torch_dtype)}
    verify(save(tensors), TensorManifest.of(tensors), 3).finish()


def test_an_error_in_the_header_is_raised_with_its_last_byte():
    tensors = sample(torch.float32)
    other = TensorManifest.of({**tensors, "a": torch.zeros(7, 3)})
    data = save(tensors)
    head = 8 + int.from_bytes(data[:8], "little")
    verifier = PayloadVerifier(other, len(data))
    for i in range(head - 1):
        verifier.feed(data[i : i + 1])
    with pytest.raises(FedLoraError) as caught:
        verifier.feed(data[head - 1 : head])
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_payload_that_ends_early_is_incomplete(kept: int):
    tensors = sample(torch.float32)
    data = save(tensors)
    verifier = PayloadVerifier(TensorManifest.of(tensors), len(data))
    verifier.feed(data[:kept])
    with pytest.raises(FedLoraError, match=f"of {len(data)} bytes") as caught:
        verifier.finish()
    assert caught.value.reason is Reason.UPLOAD_INCOMPLETE


def test_more_bytes_than_declared_are_refused_at_the_first_one():
    tensors = sample(torch.float32)
    data = save(tensors)
    verifier = verify(data, TensorManifest.of(tensors), 10**6)
    verifier.finish()
    with pytest.raises(FedLoraError) as caught:
        verifier.feed(b"x")
    assert caught.value.reason is Reason.TOO_LARGE


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=30), st.sampled_from(FLOATS), st.none() | st.data())
def test_the_verdict_does_not_depend_on_where_the_chunks_end(
    sizes: list[int], dtype: DataType, bad: st.DataObject | None
):
    tensors = sample(dtype.torch_dtype)
    if bad is not None:
        name = bad.draw(st.sampled_from(sorted(SHAPES)))
        index = bad.draw(st.integers(0, tensors[name].numel() - 1))
        tensors[name].view(-1)[index] = float("inf")
    data = save(tensors)
    verifier = PayloadVerifier(TensorManifest.of(tensors), len(data))

    def feed_all() -> None:
        position = 0
        for size in (*sizes, len(data)):
            verifier.feed(memoryview(data)[position : position + size])
            position += size
        verifier.finish()

    if bad is None:
        feed_all()
    else:
        with pytest.raises(FedLoraError, match=f"'{name}' holds inf at element {index}"):
            feed_all()


def test_memory_does_not_grow_with_the_payload():
    info = TensorInfo(name="w", shape=(4096, 4096), dtype=DataType.F32)
    manifest = TensorManifest(tensors=(info,))
    head = encode_header(manifest)
    verifier = PayloadVerifier(manifest, len(head) + manifest.data_bytes)
    verifier.feed(head)
    chunk = bytes(1024**2)
    tracemalloc.start()
    try:
        for _ in range(64):
            verifier.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    verifier.finish()
    assert peak < 1024**2
