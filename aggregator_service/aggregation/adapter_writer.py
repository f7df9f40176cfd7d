"""A safetensors file written tensor by tensor.

All shapes are known before any value is, so the header goes first and each tensor to its own
place. At no time does more than one tensor lie in memory, and the bytes depend on the contents
alone: keys are sorted, and so are their places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType

__all__ = ["AdapterWriter"]

_HEADER_ALIGNMENT = 8
"""safetensors' writers pad the header to it, so that tensors are aligned in a mapped file"""


class AdapterWriter:
    """Writes `path`; every tensor announced has to be put once before the block ends.

    Args:
        path: file to write, replaced if it is there.
        shapes: all tensors.
        dtype: element type of all of them.
        metadata: strings for the header.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: DataType,
        metadata: Mapping[str, str],
    ) -> None:
        self._shapes, self._dtype = shapes, dtype
        self._missing = set(shapes)
        entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
        self._offsets: dict[str, int] = {}
        end = 0
        for key in sorted(shapes):
            begin, end = end, end + prod(shapes[key]) * dtype.item_bytes
            self._offsets[key] = begin
            entries[key] = {
                "dtype": dtype.safetensors_name,
                "shape": list(shapes[key]),
                "data_offsets": [begin, end],
            }
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % _HEADER_ALIGNMENT)
        self._data_start = 8 + len(header)
        self.num_bytes = self._data_start + end
        """size of the file"""
        self._file = path.open("wb")
        self._file.write(len(header).to_bytes(8, "little") + header)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Makes the file durable and closes it."""
        with self._file as file:
            if error is None:
                assert not self._missing, f"never put: {sorted(self._missing)}"  # noqa: S101
                file.flush()
                os.fsync(file.fileno())

    def put(self, key: str, tensor: Tensor) -> None:
        """Rounds a tensor to the file's element type and writes it.

        Raises:
            FedLoraError: NOT_FINITE for values that the element type cannot hold.
        """
        stored = tensor.detach().to("cpu", self._dtype.torch_dtype).contiguous()
        assert tuple(stored.shape) == self._shapes[key], (key, stored.shape)  # noqa: S101
        if not bool(torch.isfinite(stored).all()):
            raise FedLoraError(
                Reason.NOT_FINITE,
                f"the aggregate of {key!r} does not fit {self._dtype.value}: "
                f"its largest magnitude is {float(tensor.abs().max()):.3g}",
                hint="Use f32 or bf16 as the run's wire_dtype",
            )
        self._missing.remove(key)
        self._file.seek(self._data_start + self._offsets[key])
        self._file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
