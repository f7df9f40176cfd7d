"""Safetensors files written tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save
from support.builders import normal

from aggregator_service.aggregation.tensor_writer import TensorWriter
from fedlora.errors import FedLoraError, Reason


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_file_is_what_safetensors_reads(dtype, tmp_path):
    tensors = {
        "a": normal(1, 3, 5),
        "ä": normal(2, 7),
        "none": normal(3, 0, 4),
        "one": torch.tensor(0.1),
    }
    with TensorWriter(tmp_path / "out", {"format": "pt"}) as writer:
        for key, tensor in tensors.items():
            writer.put(key, tensor, dtype)
    read = load_file(tmp_path / "out")
    assert {k: v.tolist() for k, v in read.items()} == {
        k: v.to(dtype).tolist() for k, v in tensors.items()
    }
    assert writer.num_bytes == (tmp_path / "out").stat().st_size
    assert names(tmp_path) == ["out"]


def test_in_safetensors_own_order_the_bytes_are_safetensors_own(tmp_path):
    tensors = {"a": normal(1, 3, 5).float(), "b": normal(2, 7).float()}
    with TensorWriter(tmp_path / "out", {"format": "pt"}) as writer:
        for key, tensor in tensors.items():
            writer.put(key, tensor, torch.float32)
    assert (tmp_path / "out").read_bytes() == save(tensors, {"format": "pt"})


def test_a_transposed_tensor_is_written_in_its_own_order(tmp_path):
    with TensorWriter(tmp_path / "out", {}) as writer:
        writer.put("a", normal(1, 3, 5).T, torch.float64)
    assert torch.equal(load_file(tmp_path / "out")["a"], normal(1, 3, 5).T)


def test_what_does_not_fit_the_element_type_is_refused_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(FedLoraError, match=r"'a' does not fit f16: .* 7e\+04") as caught,
        TensorWriter(tmp_path / "out", {}) as writer,
    ):
        writer.put("a", torch.tensor([7e4]), torch.float16)
    assert caught.value.reason is Reason.NOT_FINITE
    assert names(tmp_path) == []


def test_an_error_in_the_block_leaves_an_earlier_file_as_it_was(tmp_path):
    (tmp_path / "out").write_bytes(b"before")

    def write():
        with TensorWriter(tmp_path / "out", {}) as writer:
            writer.put("a", normal(1, 3), torch.float32)
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert (tmp_path / "out").read_bytes() == b"before"
    assert names(tmp_path) == ["out"]
