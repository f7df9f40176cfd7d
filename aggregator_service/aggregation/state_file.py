"""What a recipe remembers between rounds, as one safetensors file beside the adapter.

A method's state belongs to a module, a weighting rule's to the run. Both are tensors by name, in
whatever element type they were returned in, and are read back bit for bit: a restarted server goes
on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from safetensors import safe_open
from torch import Tensor

from aggregator_service.aggregation.tensor_writer import TensorWriter

__all__ = ["WEIGHTING", "StateReader", "StateWriter"]

WEIGHTING = ""
"""the owner of the weighting rule's state; modules have paths"""

_SEPARATOR = "|"


class StateReader:
    """The state that the round before left; empty without a file."""

    def __init__(self, path: Path | None) -> None:
        # safetensors declares its reader without types.
        self._file = cast("Any", safe_open(path, framework="pt")) if path else None
        self._names: dict[str, list[str]] = {}
        for key in self._file.keys() if self._file else ():
            owner, _, name = key.partition(_SEPARATOR)
            self._names.setdefault(owner, []).append(name)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.__exit__(kind, error, trace)

    def of(self, owner: str) -> dict[str, Tensor]:
        """The tensors of a module, or of WEIGHTING."""
        return {
            name: cast("Any", self._file).get_tensor(f"{owner}{_SEPARATOR}{name}")
            for name in sorted(self._names.get(owner, ()))
        }

    def every(self, name: str) -> dict[str, Tensor]:
        """One tensor, by its name, of every module that has it."""
        return {
            owner: cast("Any", self._file).get_tensor(f"{owner}{_SEPARATOR}{name}")
            for owner, names in sorted(self._names.items())
            if owner != WEIGHTING and name in names
        }


class StateWriter:
    """Writes a state file, owner by owner; `is_empty` says whether there was anything."""

    def __init__(self, path: Path | None) -> None:
        self._writer = TensorWriter(path, {}) if path else None
        self.is_empty = True

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Makes the file durable."""
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)

    def put(self, owner: str, state: Mapping[str, Tensor]) -> None:
        """Writes what belongs to a module, or to WEIGHTING."""
        for name in sorted(state) if self._writer is not None else ():
            self.is_empty = False
            cast("TensorWriter", self._writer).put(
                f"{owner}{_SEPARATOR}{name}", state[name], state[name].dtype
            )
