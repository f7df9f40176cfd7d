"""nf4: four bits for each value, one of 16 levels, and one scale for each 64.

Source  Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs",
        2023, arXiv:2305.14314, section 3 and appendix E: the levels are quantiles of a normal
        distribution, made to hold 0, -1 and 1.
Rule    m = max |x| of the block, rounded to bf16;  c = the level nearest to x / m;  x' = m level_c.
Bits    4 per value and 16 per block of 64 along a row: 4.25 where rows are long.
Error   |x - x'| <= m g / 2 + 2^-134 with g = 0.3038, the widest gap between levels; the constant
        is half of bf16's smallest number, for scales that are hardly larger.

Equal steps, the other format of four bits, are better on the changes of a few optimiser steps and
worse on those of many (benchmarks/codecs.md); these levels lose about the same on both.

The paper's scales are float32, and quantised once more for weights of billions; those of one update
are written in bf16, which moves them by 2^-8 at most and costs a quarter of a bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.codecs.base import Field
from fedlora.codecs.packing import filled_up, packed, unpacked
from fedlora.codecs.spec import CodecName
from fedlora.tensors.manifest import DataType

__all__ = ["LEVELS", "Nf4"]

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""the paper's table, and part of the format: both sides must have the same to the last bit"""

_BITS = 4
_BLOCK = 64
_WIDEST_GAP = max(high - low for low, high in itertools.pairwise(LEVELS))
_SCALE_ROUNDING = 2.0**-8
_SMALLEST_HALF = 2.0**-134


@dataclass(frozen=True, slots=True)
class Nf4:
    """Four bits, scaled block by block."""

    @property
    def name(self) -> CodecName:
        """Which one it is."""
        return CodecName.NF4

    def fields(self, rows: int, width: int) -> Mapping[str, Field]:
        """Half a byte for each value, a scale for each block; a row's last block may be short."""
        return {
            "codes": Field((rows, math.ceil(width / 2)), DataType.U8),
            "scales": Field((rows, math.ceil(width / _BLOCK)), DataType.BF16),
        }

    def encode(self, x_CN: Tensor) -> dict[str, Tensor]:
        """Rounds to the nearest level."""
        scales_CM = _largest_of_blocks(x_CN).to(torch.bfloat16)
        wide_CN = _spread(scales_CM, x_CN.shape[1])
        levels = torch.tensor(LEVELS)
        between = (levels[1:] + levels[:-1]) / 2
        divisors_CN = torch.where(wide_CN > 0, wide_CN, 1)
        codes_CN = torch.bucketize(x_CN / divisors_CN, between, out_int32=True)
        return {"codes": packed(codes_CN, _BITS), "scales": scales_CM}

    def decode(self, fields: Mapping[str, Tensor], rows: int, width: int) -> Tensor:  # noqa: ARG002
        """No value is larger than its block's scale, so that nothing can overflow."""
        codes_CN = unpacked(fields["codes"], _BITS)[:, :width].to(torch.int32)
        return torch.tensor(LEVELS)[codes_CN] * _spread(fields["scales"], width)

    def fault(self, fields: Mapping[str, Tensor], rows: int, width: int) -> str:  # noqa: ARG002
        """A negative scale; every code is one of a level."""
        if bool((fields["scales"] < 0).any()):
            return f"a scale is {float(fields['scales'].min())}, expected none below 0"
        return ""

    def error_bound(self, x_CN: Tensor) -> Tensor:
        """M g / 2 for the largest m that may be written, and the constant."""
        scales_CM = _largest_of_blocks(x_CN) * (1 + _SCALE_ROUNDING)
        return _spread(scales_CM, x_CN.shape[1]) * (_WIDEST_GAP / 2) + _SMALLEST_HALF


def _largest_of_blocks(x_CN: Tensor) -> Tensor:
    whole = filled_up(x_CN.abs(), _BLOCK)
    return whole.reshape(len(x_CN), -1, _BLOCK).amax(dim=2)


def _spread(scales_CM: Tensor, width: int) -> Tensor:
    """Each block's scale for each of its values."""
    return scales_CM.to(torch.float32).repeat_interleave(_BLOCK, dim=1)[:, :width]
