"""A tensor of an adapter as the matrix that a codec sees: rows of numbers of a size.

The rows of a LoRA factor are its components: of A (r x in) those of the tensor, of B (out x r) its
columns. A component is what one gradient moves at once and what a method scales or sorts, so its
numbers are of a size and those of another need not be. Tensors trained in full keep their own rows;
a vector is one row.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from fedlora.adapters.names import Part, parse_key
from fedlora.tensors.manifest import TensorInfo

__all__ = ["as_rows", "from_rows", "rows_of"]


def rows_of(info: TensorInfo) -> tuple[int, int]:
    """Number of rows and values of a row of a tensor of the adapter."""
    rows = _matrix(info.shape)[0]
    return (info.shape[1], rows) if _is_turned(info.name) else _matrix(info.shape)


def as_rows(info: TensorInfo, tensor: Tensor) -> Tensor:
    """The tensor as a matrix of rows, contiguous."""
    matrix = tensor.reshape(_matrix(info.shape))
    return matrix.T.contiguous() if _is_turned(info.name) else matrix.contiguous()


def from_rows(info: TensorInfo, x_CN: Tensor) -> Tensor:
    """The tensor of a matrix of rows."""
    matrix = x_CN.T.contiguous() if _is_turned(info.name) else x_CN
    return matrix.reshape(info.shape)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        return 1, prod(shape)
    return shape[0], prod(shape[1:])


def _is_turned(name: str) -> bool:
    return parse_key(name).part is Part.B
