"""What a codec is: a matrix of float32 in, a few small tensors out, and the matrix back, nearly.

A codec sees one tensor at a time as a matrix whose rows belong together (`rows.py`): the r
components of a LoRA factor. It says beforehand which tensors it makes of a matrix of a given shape,
so that a server knows an update's manifest before it comes; how far off the matrix is that comes
back; and what is wrong with tensors that no encoder has made.

Shape suffixes: C rows, N values of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

from torch import Tensor

from fedlora.codecs.spec import CodecName
from fedlora.tensors.manifest import DataType

__all__ = ["Codec", "Field", "bits_per_value"]


@dataclass(frozen=True, slots=True)
class Field:
    """Shape and element type of one of the tensors that a codec makes."""

    shape: tuple[int, ...]
    dtype: DataType


class Codec(Protocol):
    """One way to write numbers. A frozen dataclass of its options."""

    @property
    def name(self) -> CodecName:
        """Which one it is."""
        ...

    def fields(self, rows: int, width: int) -> Mapping[str, Field]:
        """The tensors that a matrix of `rows` x `width` is written as, by name."""
        ...

    def encode(self, x_CN: Tensor) -> dict[str, Tensor]:
        """The tensors that say `x_CN`, which is float32; equal matrices are equal tensors.

        A value beyond the codec's range comes out as infinity in one of them; the caller checks.
        """
        ...

    def decode(self, fields: Mapping[str, Tensor], rows: int, width: int) -> Tensor:
        """The matrix that the tensors say, in float32; finite if `fault` finds nothing."""
        ...

    def fault(self, fields: Mapping[str, Tensor], rows: int, width: int) -> str:
        """What is wrong with tensors of the right shapes and finite values; empty for nothing."""
        ...

    def error_bound(self, x_CN: Tensor) -> Tensor:
        """Most by which each value of `decode(encode(x_CN))` may differ from `x_CN`'s."""
        ...


def bits_per_value(codec: Codec, rows: int, width: int) -> float:
    """Bits on the wire for each value of a matrix of that shape, scales and positions included."""
    fields = codec.fields(rows, width).values()
    return sum(8 * f.dtype.item_bytes * prod(f.shape) for f in fields) / (rows * width)
