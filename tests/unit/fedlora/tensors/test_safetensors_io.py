from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from support.large_upload_process import rss_anon_bytes

from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorManifest
from fedlora.tensors.safetensors_io import decode, decode_mapped, encode


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
    assert new_digest(data).digest() == payload.digest
    read = load(data)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], t) for n, t in tensors.items())


def test_equal_tensors_are_equal_bytes_whatever_their_order():
    tensors = sample()
    turned = dict(reversed(list(tensors.items())))
    assert encode(tensors).digest == encode(turned).digest


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(1, 300))
def test_chunks_from_any_offset_are_the_rest_of_the_payload(offset: int, size: int):
    payload = encode(sample())
    whole = joined(payload.chunks(0, 10**6))
    chunks = list(payload.chunks(offset, size))
    assert joined(chunks) == whole[offset:]
    assert [o for o, _ in chunks] == list(range(offset, len(whole), size))


@pytest.mark.parametrize("writer", ["ours", "safetensors"])
def test_what_is_decoded_is_what_was_encoded(tmp_path, writer: str):
    tensors = sample()
    data = joined(encode(tensors).chunks(0, 99)) if writer == "ours" else save(packed(tensors))
    path = tmp_path / "file"
    path.write_bytes(data)
    for source in (data, path):
        read = decode(source, TensorManifest.of(tensors))
        assert all(torch.equal(read[n], t) for n, t in tensors.items())
    read = decode_mapped(path, TensorManifest.of(tensors))
    path.unlink()
    assert all(torch.equal(read[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("data", [b"", b"\0" * 7])
def test_a_file_that_cannot_be_one_is_not_mapped(tmp_path, data: bytes):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(FedLoraError) as caught:
        decode_mapped(path, TensorManifest.of(sample()))
    assert caught.value.reason is Reason.INVALID_PAYLOAD


def test_a_mapped_file_takes_no_memory_until_its_tensors_are_written_to(tmp_path):
    path, size = tmp_path / "file", 32 * 1024**2
    tensors = {"a": torch.ones(size // 4), "b": torch.ones(4)}
    path.write_bytes(data := save(tensors))
    before = rss_anon_bytes("self")
    read = decode_mapped(path, TensorManifest.of(tensors))
    assert read["a"].sum() == size // 4
    assert rss_anon_bytes("self") - before < size / 4
    read["b"].zero_()
    read["a"].zero_()
    assert rss_anon_bytes("self") - before > size / 2
    assert path.read_bytes() == data


def test_a_file_of_other_tensors_is_not_decoded():
    tensors = sample()
    other = TensorManifest.of({**tensors, "more": torch.zeros(1)})
    with pytest.raises(FedLoraError) as caught:
        decode(save(packed(tensors)), other)
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


@pytest.mark.parametrize("metadata", [None, {}, {"b": "2", "a": "\u00e9"}])
def test_the_bytes_are_those_of_safetensors_own_writer(metadata: dict[str, str] | None):
    tensors = packed(sample())
    tensors["\u0416"] = torch.ones(1)
    tensors["scalar"] = torch.tensor(2.0)
    ours = joined(encode(tensors, metadata).chunks(0, 1000))
    if metadata and len(metadata) > 1:
        # The library writes several strings in no fixed order; ours are sorted.
        assert load(ours).keys() == tensors.keys()
        assert joined(encode(tensors, dict(reversed(metadata.items()))).chunks(0, 1000)) == ours
    else:
        assert ours == save(tensors, {"format": "pt"} if metadata is None else metadata or None)


def test_tensors_that_lie_askew_in_the_file_are_read_aligned():
    bias = torch.ones(3, dtype=torch.bfloat16)
    weight = torch.arange(4.0)
    header = (
        b'{"bias":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},'
        b'"w":{"dtype":"F32","shape":[4],"data_offsets":[6,22]}}'
    )
    header += b" " * (1 - len(header) % 2)
    values = bias.view(torch.uint8).numpy().tobytes() + weight.numpy().tobytes()
    data = len(header).to_bytes(8, "little") + header + values
    read = decode(data, TensorManifest.of({"bias": bias, "w": weight}))
    assert torch.equal(read["bias"], bias)
    assert torch.equal(read["w"], weight)
    assert all(t.data_ptr() % t.element_size() == 0 for t in read.values())


def test_decoded_tensors_can_be_trained_in_place():
    tensors = packed(sample())
    data = save(tensors)
    read = decode(data, TensorManifest.of(tensors))
    for tensor in read.values():
        tensor.zero_()
    assert data == save(tensors), "the bytes given are not written to"


def test_a_payload_does_not_follow_a_tensor_that_needs_gradients():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    assert load(joined(encode({"w": weight}).chunks(0, 100)))["w"].requires_grad is False


def test_a_tensor_that_is_not_on_the_cpu_is_refused():
    with pytest.raises(FedLoraError, match="on the CPU, got one on meta") as caught:
        encode({"w": torch.empty(2, device="meta")})
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_every_torch_type_with_a_wire_type_comes_back():
    for dtype in DataType:
        assert DataType.of(dtype.torch_dtype) is dtype
    with pytest.raises(FedLoraError, match=r"no wire type for torch\.float64"):
        DataType.of(torch.float64)
