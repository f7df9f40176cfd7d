"""top_k: the k values of largest magnitude in bf16, and a bitmap that says where they stand.

Source  Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, arXiv:1809.07599: with what is
        left out added to the next update, sparse updates reach what whole ones reach.
Rule    k = ceil(share n) of a tensor of n values; of equal magnitudes the first ones.
Bits    1 + 16 share per value. 32-bit indices would take 32 share: more from a share of 1/32 on. A
        bitmap cannot repeat an index, leave the range, or be out of order.
Error   |x - x'| <= |x| for what is left out, 2^-8 |x| + 2^-134 for what is sent; in sum
        ||x - x'||^2 <= (1 - k/n + 2^-16) ||x||^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.codecs.base import Field
from fedlora.codecs.floats import Halves
from fedlora.codecs.packing import packed, unpacked
from fedlora.codecs.spec import CodecName
from fedlora.tensors.manifest import DataType

__all__ = ["TopK"]

_VALUES = Halves(CodecName.BF16)


@dataclass(frozen=True, slots=True)
class TopK:
    """A few values and their places."""

    kept_share: float
    """k / n, in (0, 1]"""

    @property
    def name(self) -> CodecName:
        """Which one it is."""
        return CodecName.TOP_K

    def fields(self, rows: int, width: int) -> Mapping[str, Field]:
        """A bit for each value, 16 more for each that is kept."""
        count = rows * width
        return {
            "places": Field((math.ceil(count / 8),), DataType.U8),
            "values": Field((self._kept(count),), DataType.BF16),
        }

    def encode(self, x_CN: Tensor) -> dict[str, Tensor]:
        """Keeps the largest."""
        flat = x_CN.flatten()
        kept = _largest(flat.abs(), self._kept(len(flat)))
        return {"places": packed(kept, 1), **_VALUES.encode(flat[kept])}

    def decode(self, fields: Mapping[str, Tensor], rows: int, width: int) -> Tensor:
        """Zero where no bit is set."""
        flat = torch.zeros(rows * width)
        flat[_places(fields)[: rows * width]] = fields["values"].to(torch.float32)
        return flat.reshape(rows, width)

    def fault(self, fields: Mapping[str, Tensor], rows: int, width: int) -> str:
        """More or fewer places than values, or places behind the last value."""
        places, count = _places(fields), rows * width
        if bool(places[count:].any()):
            return f"a place lies beyond the tensor's {count} values"
        if (named := int(places.sum())) != len(fields["values"]):
            return f"{named} places are named for {len(fields['values'])} values"
        return ""

    def error_bound(self, x_CN: Tensor) -> Tensor:
        """|x| or its rounding."""
        magnitudes = x_CN.abs().flatten()
        kept = _largest(magnitudes, self._kept(len(magnitudes))).reshape(x_CN.shape)
        return torch.where(kept, _VALUES.error_bound(x_CN), x_CN.abs())

    def _kept(self, count: int) -> int:
        return math.ceil(self.kept_share * count)


def _largest(magnitudes: Tensor, count: int) -> Tensor:
    """Which are the largest: `count` of them, the first ones among equals."""
    least = magnitudes.topk(count).values[-1]
    above = magnitudes > least
    equal = magnitudes == least
    wanted = count - int(above.sum())
    return above | (equal & (equal.cumsum(0) <= wanted))


def _places(fields: Mapping[str, Tensor]) -> Tensor:
    """Which values are there, and which of the bits behind the last are set."""
    return unpacked(fields["places"], 1).bool()
