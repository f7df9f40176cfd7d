"""int8: a whole number from -127 to 127 for each value, and one scale for each row.

Rule    m = max |x| of the row,  c = round(127 x / m),  x' = m c / 127.
Bits    8 per value and 32 per row.
Error   |x - x'| <= m / 254, and what float32 rounds: 2^-22 m + 2^-149.

A row is one component of a LoRA factor. The r components may differ in size by orders of magnitude
(`optimal` publishes them in the order of singular values) and would drown in a common scale; a
scale for each row of the *other* axis would cost 32 bits for r values.

On the wire a code is a byte, c + 128, so that 0 is no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.codecs.base import Field
from fedlora.codecs.spec import CodecName
from fedlora.tensors.manifest import DataType

__all__ = ["Int8"]

_STEPS = 127
_ZERO = 128
"""the byte that says 0"""
_ROUNDING = 2.0**-22
"""of float32 on the way there and back, relative to the row's scale"""
_SMALLEST = 2.0**-149
"""float32's smallest number, for scales that are hardly larger"""


@dataclass(frozen=True, slots=True)
class Int8:
    """Eight bits, scaled row by row."""

    @property
    def name(self) -> CodecName:
        """Which one it is."""
        return CodecName.INT8

    def fields(self, rows: int, width: int) -> Mapping[str, Field]:
        """A byte for each value, a scale for each row."""
        return {
            "codes": Field((rows, width), DataType.U8),
            "scales": Field((rows,), DataType.F32),
        }

    def encode(self, x_CN: Tensor) -> dict[str, Tensor]:
        """Rounds to the nearest step."""
        scales_C = x_CN.abs().amax(dim=1)
        # A row of zeros has no scale to divide by; its codes are zero whatever it is divided by.
        divisors_C1 = torch.where(scales_C > 0, scales_C, 1).unsqueeze(1)
        codes_CN = (x_CN / divisors_C1 * _STEPS).round()
        return {"codes": (codes_CN + _ZERO).to(torch.uint8), "scales": scales_C}

    def decode(self, fields: Mapping[str, Tensor], rows: int, width: int) -> Tensor:  # noqa: ARG002
        """No value is larger than its row's scale, so that nothing can overflow."""
        steps_CN = (fields["codes"].to(torch.float32) - _ZERO) / _STEPS
        return steps_CN * fields["scales"].unsqueeze(1)

    def fault(self, fields: Mapping[str, Tensor], rows: int, width: int) -> str:  # noqa: ARG002
        """A byte that is no code, or a negative scale."""
        if not bool(fields["codes"].all()):
            return "a code is 0, expected 1 to 255"
        if bool((fields["scales"] < 0).any()):
            return f"a scale is {float(fields['scales'].min())}, expected none below 0"
        return ""

    def error_bound(self, x_CN: Tensor) -> Tensor:
        """M / 254, and float32's rounding."""
        scales_C1 = x_CN.abs().amax(dim=1, keepdim=True)
        return (scales_C1 * (0.5 / _STEPS + _ROUNDING) + _SMALLEST).expand_as(x_CN)
