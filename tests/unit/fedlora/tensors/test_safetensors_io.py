from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorManifest
from fedlora.tensors.safetensors_io import FilePayload, decode, encode
from fedlora.tensors.verifier import PayloadVerifier


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "z.lora_A.weight": torch.randn(3, 7, generator=generator),
        "a.bias": torch.randn(5, generator=generator).half(),
        "m.lora_B.weight": torch.randn(4, 3, generator=generator).bfloat16(),
        "strided": torch.randn(6, 4, generator=generator).T,
    }


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.contiguous() for n, t in tensors.items()}


def joined(chunks) -> bytes:
    return b"".join(data for _, data in chunks)


def test_a_payload_is_a_file_that_safetensors_reads():
    tensors = sample()
    payload = encode(tensors)
    data = joined(payload.chunks(0, 64))
    assert len(data) == payload.total_bytes
    assert hashlib.sha256(data).digest() == payload.sha256
    read = load(data)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], t) for n, t in tensors.items())


def test_equal_tensors_are_equal_bytes_whatever_their_order():
    tensors = sample()
    turned = dict(reversed(list(tensors.items())))
    assert encode(tensors).sha256 == encode(turned).sha256


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(1, 300))
def test_chunks_from_any_offset_are_the_rest_of_the_payload(offset: int, size: int):
    payload = encode(sample())
    whole = joined(payload.chunks(0, 10**6))
    chunks = list(payload.chunks(offset, size))
    assert joined(chunks) == whole[offset:]
    assert [o for o, _ in chunks] == list(range(offset, len(whole), size))


def test_a_file_is_chunked_like_the_payload_it_holds(tmp_path):
    payload = encode(sample())
    path = tmp_path / "file"
    path.write_bytes(joined(payload.chunks(0, 100)))
    assert list(FilePayload(path).chunks(13, 50)) == list(payload.chunks(13, 50))


@pytest.mark.parametrize("writer", ["ours", "safetensors"])
def test_what_is_decoded_is_what_was_encoded(tmp_path, writer: str):
    tensors = sample()
    data = joined(encode(tensors).chunks(0, 99)) if writer == "ours" else save(packed(tensors))
    path = tmp_path / "file"
    path.write_bytes(data)
    for source in (data, path):
        read = decode(source, TensorManifest.of(tensors))
        assert all(torch.equal(read[n], t) for n, t in tensors.items())


def test_a_file_of_other_tensors_is_not_decoded():
    tensors = sample()
    other = TensorManifest.of({**tensors, "more": torch.zeros(1)})
    with pytest.raises(FedLoraError) as caught:
        decode(save(packed(tensors)), other)
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


def feed_in_pieces(verifier: PayloadVerifier, data: bytes, size: int) -> None:
    for begin in range(0, len(data), size):
        verifier.feed(data[begin : begin + size])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
def test_the_verifier_finds_the_same_whatever_the_chunks(size: int):
    tensors = sample()
    tensors["m.lora_B.weight"][3, 1] = float("inf")
    data = joined(encode(tensors).chunks(0, 10**6))
    verifier = PayloadVerifier(TensorManifest.of(tensors), len(data))
    with pytest.raises(FedLoraError, match=r"m\.lora_B\.weight' holds inf at element 10") as caught:
        feed_in_pieces(verifier, data, size)
    assert caught.value.reason is Reason.NOT_FINITE


def test_more_bytes_than_declared_are_refused_at_the_first_one():
    data = joined(encode(sample()).chunks(0, 10**6))
    verifier = PayloadVerifier(TensorManifest.of(sample()), len(data))
    verifier.feed(data)
    verifier.finish()
    with pytest.raises(FedLoraError) as caught:
        verifier.feed(b"x")
    assert caught.value.reason is Reason.TOO_LARGE


def test_every_torch_type_with_a_wire_type_comes_back():
    for dtype in DataType:
        assert DataType.of(dtype.torch_dtype) is dtype
    with pytest.raises(FedLoraError, match=r"no wire type for torch\.float64"):
        DataType.of(torch.float64)
