"""An update in a codec: what training has changed, tensor by tensor, as a safetensors payload.

Rule    x = W - G + e,   x' = decode(encode(x)),   W' = G + x',   e <- (W + e) - W'
        with G what the worker was given, W what it has trained, e what earlier updates have left
        out, W' what the server reads. Written is the change x and not W: the two sides agree on
        G, and x is by far the smaller number, so that the same bits say it more exactly.
        The next update makes up for the error e of this one ("error feedback": Seide et al.,
        "1-Bit Stochastic Gradient Descent", 2014; Karimireddy et al., 2019, arXiv:1901.09847,
        algorithm 1). Over rounds the server has then read all of every change but the last e.
Range   W' saturates at float32's largest number, beyond which no update could be.

A tensor `KEY` of the adapter becomes tensors `KEY.codes`, `KEY.scales` and so on, which no reader
of adapters takes for tensors of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.codecs.base import Codec
from fedlora.codecs.floats import Halves
from fedlora.codecs.int8 import Int8
from fedlora.codecs.nf4 import Nf4
from fedlora.codecs.rows import as_rows, from_rows, rows_of
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.top_k import TopK
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = [
    "CodedUpdate",
    "coded_manifest",
    "coded_update",
    "create_codec",
    "fault_of",
    "field_names",
    "read_tensor",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedUpdate:
    """An update as it is sent, and what the codec took from it."""

    tensors: Mapping[str, Tensor]
    """by their names in the payload"""
    residual: Mapping[str, Tensor]
    """e by the adapter's names, float32"""


def create_codec(spec: CodecSpec) -> Codec:
    """The codec that a run names."""
    match spec.name:
        case CodecName.BF16 | CodecName.F16:
            return Halves(spec.name)
        case CodecName.INT8:
            return Int8()
        case CodecName.NF4:
            return Nf4()
        case CodecName.TOP_K:
            return TopK(spec.kept_share)


def coded_manifest(plain: TensorManifest, codec: Codec) -> TensorManifest:
    """The payload's tensors for an update that would plainly hold those of `plain`."""
    return TensorManifest(
        tensors=tuple(
            TensorInfo(name=name, shape=field.shape, dtype=field.dtype)
            for info in plain.tensors
            for name, field in zip(
                field_names(info, codec).values(),
                codec.fields(*rows_of(info)).values(),
                strict=True,
            )
        )
    )


def field_names(info: TensorInfo, codec: Codec) -> dict[str, str]:
    """The payload's name of each tensor that the codec makes of one, by the codec's own."""
    return {field: f"{info.name}.{field}" for field in codec.fields(*rows_of(info))}


def coded_update(
    codec: Codec,
    trained: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    residual: Mapping[str, Tensor],
) -> CodedUpdate:
    """Writes what training has changed, and what earlier updates have left out.

    Args:
        codec: the run's.
        trained: W of the tensors to send, float32.
        given: G, at least of those, in any element type.
        residual: e of some of them; 0 for the others.

    Raises:
        FedLoraError: NOT_FINITE for a change that the codec cannot write.
    """
    tensors: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    for name, value in trained.items():
        info = TensorInfo(name=name, shape=tuple(value.shape), dtype=DataType.F32)
        start = given[name].to(torch.float32)
        # In float64: the residual of a fine codec is of the size of float32's rounding.
        wanted = value.to(torch.float64)
        if name in residual:
            wanted = wanted + residual[name]
        change = (wanted - start).to(torch.float32)
        # A codec that leaves values out may leave out the one that is no number.
        _check_range(codec, info, change, change)
        fields = codec.encode(as_rows(info, change))
        for field, stored in field_names(info, codec).items():
            _check_range(codec, info, change, fields[field])
            tensors[stored] = fields[field]
        left[name] = (wanted - read_tensor(codec, info, fields, start)).to(torch.float32)
    return CodedUpdate(tensors=tensors, residual=left)


def read_tensor(
    codec: Codec, info: TensorInfo, fields: Mapping[str, Tensor], given: Tensor
) -> Tensor:
    """W', the tensor as the server reads it, in float32.

    Args:
        codec: the run's.
        info: the tensor's name and shape.
        fields: what the codec made of its change, by the codec's own names.
        given: G.
    """
    change = from_rows(info, codec.decode(fields, *rows_of(info)))
    most = torch.finfo(torch.float32).max
    return (given.to(torch.float32) + change).clamp(-most, most)


def fault_of(codec: Codec, info: TensorInfo, fields: Mapping[str, Tensor]) -> str:
    """What is wrong with the fields of one tensor, if their shapes and types are right."""
    return codec.fault(fields, *rows_of(info))


def _check_range(codec: Codec, info: TensorInfo, change: Tensor, field: Tensor) -> None:
    if field.is_floating_point() and not bool(torch.isfinite(field).all()):
        raise FedLoraError(
            Reason.NOT_FINITE,
            f"tensor {info.name!r} has changed by up to {float(change.abs().max()):.3g}, expected "
            f"a change that {codec.name.value} can write",
            hint='The training has diverged, or takes larger steps: set codec.name = "bf16"',
        )
