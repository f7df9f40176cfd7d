"""bf16 and f16: each value rounded to the nearest number of 16 bits.

Bits    16 per value.
Error   |x - x'| <= u |x| + t, with u = 2^-8 and t = 2^-134 for bf16, u = 2^-11 and t = 2^-25 for
        f16: half a unit in the last digit, and half the smallest number there is.
Range   bf16 has float32's. f16 ends at 65504 and loses digits below 6e-5, so that it is the better
        one for changes of a size that learning rates above that make, and the worse one below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.codecs.base import Field
from fedlora.codecs.spec import CodecName
from fedlora.tensors.manifest import DataType

__all__ = ["Halves"]

_TYPES = {CodecName.BF16: DataType.BF16, CodecName.F16: DataType.F16}


@dataclass(frozen=True, slots=True)
class Halves:
    """Numbers of 16 bits."""

    name: CodecName
    """bf16 or f16"""

    def fields(self, rows: int, width: int) -> Mapping[str, Field]:
        """One value for each."""
        return {"values": Field((rows, width), _TYPES[self.name])}

    def encode(self, x_CN: Tensor) -> dict[str, Tensor]:
        """Rounds to nearest, ties to even."""
        return {"values": x_CN.to(_TYPES[self.name].torch_dtype)}

    def decode(self, fields: Mapping[str, Tensor], rows: int, width: int) -> Tensor:  # noqa: ARG002
        """Exact: float32 holds every number of 16 bits."""
        return fields["values"].to(torch.float32)

    def fault(self, fields: Mapping[str, Tensor], rows: int, width: int) -> str:  # noqa: ARG002
        """None: every finite number is one that an encoder may have written."""
        return ""

    def error_bound(self, x_CN: Tensor) -> Tensor:
        """U |x| + t."""
        limits = torch.finfo(_TYPES[self.name].torch_dtype)
        # eps is a whole unit in the last digit of 1, smallest_normal * eps the smallest number.
        return x_CN.abs() * (limits.eps / 2) + limits.smallest_normal * limits.eps / 2
