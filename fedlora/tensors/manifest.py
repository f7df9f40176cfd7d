"""What a payload holds: names, shapes and element types, before any byte of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import TYPE_CHECKING

from fedlora.errors import FedLoraError, Reason

if TYPE_CHECKING:
    import torch

__all__ = ["FLOATS", "DataType", "TensorInfo", "TensorManifest"]


class DataType(enum.StrEnum):
    """Element type of a tensor on the wire and on disk."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    U8 = "u8"
    """bytes of a codec; no adapter has them"""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type in torch."""
        return _torch_types()[self]

    @property
    def safetensors_name(self) -> str:
        """The type in a safetensors header."""
        return self.value.upper()

    @property
    def item_bytes(self) -> int:
        """Size of one element."""
        return _ITEM_BYTES[self]

    @classmethod
    def of(cls, dtype: torch.dtype) -> DataType:
        """The wire type of a torch type; raises FedLoraError for one that has none."""
        for wire, candidate in _torch_types().items():
            if candidate == dtype:
                return wire
        known = ", ".join(str(d) for d in _torch_types().values())
        raise FedLoraError(Reason.INVALID_ARGUMENT, f"no wire type for {dtype}; known: {known}")


FLOATS = (DataType.F32, DataType.F16, DataType.BF16)
"""types of an adapter's tensors"""

_ITEM_BYTES = {DataType.F32: 4, DataType.F16: 2, DataType.BF16: 2, DataType.U8: 1}


@cache
def _torch_types() -> Mapping[DataType, torch.dtype]:
    # Here and not above: reading a configuration needs the names of the types, but not torch.
    import torch

    return {
        DataType.F32: torch.float32,
        DataType.F16: torch.float16,
        DataType.BF16: torch.bfloat16,
        DataType.U8: torch.uint8,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a payload, under its PEFT state-dict key or a name that a codec makes of it."""

    name: str
    shape: tuple[int, ...]
    dtype: DataType

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return prod(self.shape) * self.dtype.item_bytes


@dataclass(frozen=True, kw_only=True)
class TensorManifest:
    """Every tensor of a payload, sorted by name so that equal contents are equal manifests."""

    tensors: tuple[TensorInfo, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(sorted(self.tensors, key=lambda t: t.name)))

    @cached_property
    def by_name(self) -> Mapping[str, TensorInfo]:
        """The tensors by name."""
        return {t.name: t for t in self.tensors}

    @property
    def data_bytes(self) -> int:
        """Size of all tensors' data, without a file's header."""
        return sum(t.num_bytes for t in self.tensors)

    def difference(self, other: TensorManifest) -> str:
        """First way in which `other` differs from this manifest, in words; empty if it does not."""
        mine, theirs = self.by_name, other.by_name
        if len(theirs) != len(other.tensors):
            return "a tensor name occurs twice"
        if missing := sorted(mine.keys() - theirs.keys()):
            return f"{len(missing)} tensors are missing, first {missing[0]!r}"
        if extra := sorted(theirs.keys() - mine.keys()):
            return f"{len(extra)} tensors are not in the run, first {extra[0][:200]!r}"
        for name, want in mine.items():
            got = theirs[name]
            if want != got:
                return (
                    f"tensor {name!r}: expected {want.dtype.value} {list(want.shape)}, "
                    f"got {got.dtype.value} {list(got.shape)}"
                )
        return ""

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> TensorManifest:
        """The manifest of tensors in memory."""
        return cls(
            tensors=tuple(
                TensorInfo(name=n, shape=tuple(t.shape), dtype=DataType.of(t.dtype))
                for n, t in tensors.items()
            )
        )
