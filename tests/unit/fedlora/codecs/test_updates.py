from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.codecs import read_update
from support.runs import LAYOUT
from torch import Tensor

from fedlora.adapters.names import Part, parse_key
from fedlora.codecs.base import Codec
from fedlora.codecs.rows import as_rows, from_rows, rows_of
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import (
    coded_manifest,
    coded_update,
    create_codec,
    read_tensor,
)
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

CODECS = [create_codec(CodecSpec(name=name)) for name in CodecName]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name.value)
PLAIN = LAYOUT.manifest(4, DataType.F32, parts=(Part.A, Part.B, Part.MAGNITUDE, Part.CORE))


def tensors(seed: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {t.name: size * torch.randn(t.shape, generator=generator) for t in PLAIN.tensors}


def sum_of(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + other[name] for name, tensor in one.items()}


@every_codec
def test_the_payload_is_the_one_that_the_manifest_foretells(codec: Codec):
    given = tensors(0)
    coded = coded_update(codec, sum_of(given, tensors(1, 1e-3)), given, {})
    assert coded_manifest(PLAIN, codec) == TensorManifest.of(coded.tensors)


def test_no_tensor_of_a_payload_is_taken_for_one_of_an_adapter():
    for codec in CODECS:
        for info in coded_manifest(PLAIN, codec).tensors:
            if ".lora_" in info.name:
                with pytest.raises(FedLoraError):
                    parse_key(info.name)
            else:
                assert info.name not in PLAIN.by_name


def test_the_rows_of_a_factor_are_its_components():
    a, b = (next(t for t in PLAIN.tensors if parse_key(t.name).part is p) for p in (Part.A, Part.B))
    assert (rows_of(a), rows_of(b)) == ((4, 12), (4, 20))
    value = torch.arange(80.0).reshape(20, 4)
    assert torch.equal(as_rows(b, value)[1], value[:, 1])
    assert torch.equal(from_rows(b, as_rows(b, value)), value)
    square = replace(b, shape=(4, 4))
    assert torch.equal(as_rows(square, value[:4]), value[:4].T)


@pytest.mark.parametrize(
    ("shape", "rows"), [((), (1, 1)), ((5,), (1, 5)), ((3, 4), (3, 4)), ((3, 4, 2), (3, 8))]
)
def test_a_tensor_trained_in_full_keeps_its_own_rows(shape: tuple[int, ...], rows: tuple[int, int]):
    info = TensorInfo(name="base_model.model.head.weight", shape=shape, dtype=DataType.F32)
    value = torch.randn(shape)
    assert rows_of(info) == rows == tuple(as_rows(info, value).shape)
    assert torch.equal(from_rows(info, as_rows(info, value)), value)


@every_codec
def test_a_codec_writes_the_change_and_so_is_as_exact_as_the_change_is_small(codec: Codec):
    given = tensors(0)
    for size in (1.0, 1e-3):
        change = tensors(1, size)
        trained = sum_of(given, change)
        coded = coded_update(codec, trained, given, {})
        seen = read_update(codec, coded.tensors, given)
        for info in PLAIN.tensors:
            bound = from_rows(
                info, codec.error_bound(as_rows(info, trained[info.name] - given[info.name]))
            )
            rounding = 2.0**-22 * given[info.name].abs().max()
            assert bool(((seen[info.name] - trained[info.name]).abs() <= bound + rounding).all())


@every_codec
def test_over_rounds_the_server_reads_all_of_every_change_but_the_last_residual(codec: Codec):
    given, residual = tensors(0), dict[str, Tensor]()
    owed = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in given.items()}
    for round in range(1, 6):
        trained = sum_of(given, tensors(round, 0.1))
        coded = coded_update(codec, trained, given, residual)
        seen = read_update(codec, coded.tensors, given)
        owed = {n: owed[n] + trained[n].double() - seen[n].double() for n in owed}
        given, residual = seen, dict(coded.residual)
    for name, difference in owed.items():
        assert torch.allclose(difference, residual[name].double(), atol=1e-5)
    assert any(bool(r.any()) for r in residual.values())


def test_a_residual_is_added_and_not_taken_away():
    # bf16 cannot say 1 + 2^-9: the rest is owed, and two of it can be said.
    codec = create_codec(CodecSpec(name=CodecName.BF16))
    name = "base_model.model.head.bias"
    given = {name: torch.zeros(1)}
    once = coded_update(codec, {name: torch.tensor([1 + 2.0**-9])}, given, {})
    assert once.residual[name].item() == 2.0**-9
    twice = coded_update(codec, {name: torch.tensor([2.0**-9])}, given, once.residual)
    assert twice.tensors[f"{name}.values"].item() == 2.0**-8
    assert twice.residual[name].item() == 0.0


def test_a_change_out_of_range_is_refused_and_told():
    codec = create_codec(CodecSpec(name=CodecName.F16))
    name = "base_model.model.head.bias"
    with pytest.raises(
        FedLoraError, match=r"has changed by up to 7e\+04, expected a change that f16"
    ) as error:
        coded_update(codec, {name: torch.tensor([7e4])}, {name: torch.zeros(1)}, {})
    assert error.value.reason is Reason.NOT_FINITE
    assert "bf16" in error.value.hint


def test_a_sum_beyond_float32_saturates():
    codec = create_codec(CodecSpec(name=CodecName.BF16))
    info = TensorInfo(name="base_model.model.head.bias", shape=(2,), dtype=DataType.F32)
    large = {"values": torch.tensor([[3.3e38, -3.3e38]], dtype=torch.bfloat16)}
    most = torch.finfo(torch.float32).max
    assert read_tensor(codec, info, large, torch.tensor([3e38, -3e38])).tolist() == [most, -most]


def test_what_was_given_in_sixteen_bits_is_what_the_change_is_of():
    codec = create_codec(CodecSpec(name=CodecName.BF16))
    name = "base_model.model.head.bias"
    given = {name: torch.tensor([0.3], dtype=torch.bfloat16)}
    coded = coded_update(codec, {name: given[name].float()}, given, {})
    assert coded.tensors[f"{name}.values"].item() == 0.0


@pytest.mark.parametrize("name", CodecName)
def test_a_change_that_is_no_number_is_refused_by_every_codec(name):
    """Also by those that send a few values and could leave it out."""
    key = "base_model.model.head.weight"
    trained = torch.ones(4, 60)
    trained[1, 3] = torch.nan
    with pytest.raises(FedLoraError, match="has changed by up to nan") as error:
        coded_update(
            create_codec(CodecSpec(name=name)), {key: trained}, {key: torch.zeros(4, 60)}, {}
        )
    assert error.value.reason is Reason.NOT_FINITE
