"""A safetensors file written tensor by tensor.

Tensors go to a file of their own beside the target, one after the other, and behind the header once
all shapes are known: a method may decide a module's rank while it combines it. At no time does more
than one tensor lie in memory, and the bytes depend on the contents and their order alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import is_finite

__all__ = ["TensorWriter"]

_ALIGNMENT = 8
"""safetensors' writers pad the header to it, so that tensors are aligned in a mapped file"""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}

_COPY_BYTES = 1024**2


class TensorWriter:
    """Writes `path`.

    Args:
        path: file to write, replaced if it is there; beside it lies `path` with ".data" until
            the block ends.
        metadata: strings for the header.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path, self._metadata = path, metadata
        self._entries: dict[str, object] = {}
        self._end = 0
        self._data_path = path.with_name(path.name + ".data")
        self._data = self._data_path.open("w+b")
        self.num_bytes = 0
        """size of the file, once the block has ended"""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the file together and makes it durable; after an error it is left unwritten."""
        try:
            with self._data:
                if error is None:
                    self._assemble()
        finally:
            self._data_path.unlink(missing_ok=True)

    def put(self, key: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """Rounds a tensor to an element type and writes it.

        Raises:
            FedLoraError: NOT_FINITE for values that the element type cannot hold.
        """
        stored = tensor.detach().to("cpu", dtype).contiguous()
        if not is_finite(stored):
            raise FedLoraError(
                Reason.NOT_FINITE,
                f"the aggregate of {key!r} does not fit {_NAMES[dtype].lower()}: "
                f"its largest magnitude is {float(tensor.abs().max()):.3g}",
                hint="Use f32 or bf16 as the run's wire_dtype",
            )
        assert key not in self._entries, f"put twice: {key}"  # noqa: S101
        data = stored.reshape(-1).view(torch.uint8).numpy().data
        begin, self._end = self._end, self._end + len(data)
        self._entries[key] = {
            "dtype": _NAMES[dtype],
            "shape": list(stored.shape),
            "data_offsets": [begin, self._end],
        }
        self._data.write(data)

    def _assemble(self) -> None:
        entries = {"__metadata__": dict(sorted(self._metadata.items())), **self._entries}
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        self.num_bytes = 8 + len(header) + self._end
        with self._path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            self._data.seek(0)
            shutil.copyfileobj(self._data, file, _COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
