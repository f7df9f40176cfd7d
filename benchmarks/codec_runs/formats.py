"""What a codec costs and loses on given changes; and what was tried and is no codec here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from fedlora.codecs.base import Codec, bits_per_value
from fedlora.codecs.rows import as_rows, rows_of
from fedlora.tensors.manifest import DataType, TensorInfo

__all__ = ["Loss", "loss_of", "low_rank", "seconds_per_gb", "tensors_in_bf16", "uniform_int4"]

_TIMED_ROWS, _TIMED_WIDTH = 16, 2**20
"""64 MiB of float32"""
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Over the changes of a whole update."""

    bits: float
    """per value"""
    error: float
    """||x - x'|| / ||x||"""


def loss_of(codec: Codec, changes: Mapping[str, Tensor]) -> Loss:
    """Of a codec, without feedback."""
    wrong = size = bits = 0.0
    for info, x_CN in _matrices(changes):
        rows, width = rows_of(info)
        read = codec.decode(codec.encode(x_CN), rows, width)
        wrong += float((read - x_CN).double().square().sum())
        size += float(x_CN.double().square().sum())
        bits += bits_per_value(codec, rows, width) * x_CN.numel()
    return Loss(bits=bits / _count(changes), error=(wrong / size) ** 0.5)


def uniform_int4(changes: Mapping[str, Tensor]) -> Loss:
    """Fifteen equal steps for each 64 values, with scales as nf4 has them."""
    wrong = size = bits = 0.0
    for _, x_CN in _matrices(changes):
        blocks = torch.nn.functional.pad(x_CN, (0, -x_CN.shape[1] % _BLOCK)).reshape(-1, _BLOCK)
        scales = blocks.abs().amax(dim=1, keepdim=True).bfloat16().float()
        steps = (blocks / scales.clamp_min(1e-38) * 7).round().clamp(-7, 7)
        wrong += float((steps / 7 * scales - blocks).double().square().sum())
        size += float(x_CN.double().square().sum())
        bits += 4 * ceil(x_CN.numel() / 2) * 2 + 16 * len(blocks)
    return Loss(bits=bits / _count(changes), error=(wrong / size) ** 0.5)


def tensors_in_bf16(given: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> Loss:
    """The trained tensors themselves in bf16, as `run.wire_dtype` has them: no codec's way."""
    wrong = size = 0.0
    for name, change in changes.items():
        trained = given[name] + change
        wrong += float((trained.bfloat16().float() - trained).double().square().sum())
        size += float(change.double().square().sum())
    return Loss(bits=16.0, error=(wrong / size) ** 0.5)


def low_rank(changes: Mapping[str, Tensor], rank: int) -> Loss:
    """The best approximation of that rank: PowerSGD's sketches come to no less than this."""
    wrong = size = bits = 0.0
    for _, x_CN in _matrices(changes):
        values = torch.linalg.svdvals(x_CN.double())
        wrong += float(values[rank:].square().sum())
        size += float(values.square().sum())
        kept = min(rank, len(values)) * sum(x_CN.shape)
        bits += 32 * min(kept, x_CN.numel())
    return Loss(bits=bits / _count(changes), error=(wrong / size) ** 0.5)


def seconds_per_gb(codec: Codec) -> tuple[float, float]:
    """CPU seconds to encode and to decode 10^9 bytes of float32; the best of three."""
    x_CN = torch.randn(_TIMED_ROWS, _TIMED_WIDTH, generator=torch.Generator().manual_seed(0))
    times: list[tuple[float, float]] = []
    for _ in range(3):
        began = time.process_time()
        fields = codec.encode(x_CN)
        between = time.process_time()
        codec.decode(fields, _TIMED_ROWS, _TIMED_WIDTH)
        times.append((between - began, time.process_time() - between))
    share = 1e9 / (4 * x_CN.numel())
    return share * min(t for t, _ in times), share * min(t for _, t in times)


def _matrices(changes: Mapping[str, Tensor]) -> Iterator[tuple[TensorInfo, Tensor]]:
    for name, change in changes.items():
        info = TensorInfo(name=name, shape=tuple(change.shape), dtype=DataType.F32)
        yield info, as_rows(info, change)


def _count(changes: Mapping[str, Tensor]) -> int:
    return sum(change.numel() for change in changes.values())
