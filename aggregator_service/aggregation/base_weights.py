"""The frozen weights of a run's base model, read a few rows at a time.

The aggregator runs no model and has no transformers. A few formulas need W0 itself (`magnitudes`,
`hadamard_als`); they get rows of it, from safetensors files in the layout that transformers
writes: one file, or shards with `model.safetensors.index.json`. The weight of the module at `path`
is the tensor `<path>.weight`, out_features x in_features; Conv1D, as in GPT-2, stores its
transpose (PEFT's fan_in_fan_out).

Is it the run's model? A worker's fingerprint is, after the model has been loaded in float32 and
without the modules that are trained in full, the SHA-256 over the lines

    <name> NUL <dtype> NUL <shape> NUL <SHA-256 of the tensor's bytes> LF        sorted by name

of its state dict. Here the same is made of the files, in pieces, floating tensors as float32. It
can differ for a checkpoint that is the right one: files leave out tied weights, hold parts that
the task does not load, or use older names. Then the state dict itself has to be exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.adapters.names import is_inside
from fedlora.adapters.spec import AdaptedModule
from fedlora.errors import FedLoraError, Reason

__all__ = ["BaseWeights"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PIECE_NUMBERS = 2**22
"""entries that are hashed at a time: 16 MiB in float32"""
_EXPORT = (
    "Export the model as workers load it: safetensors.torch.save_file({name: t.clone() for name, t "
    "in model.state_dict().items()}, 'base.safetensors')"
)


class BaseWeights:
    """Read-only access to safetensors files; a context manager that closes them.

    Args:
        path: one safetensors file, or a folder with one or with shards and their index.
        fan_in_fan_out: adapted weights are stored in_features x out_features.

    Raises:
        FedLoraError: INVALID_MODEL for what cannot be opened, or shards that their index does
            not describe.
    """

    def __init__(self, path: Path, *, fan_in_fan_out: bool = False) -> None:
        self.path = path
        self._transposed = fan_in_fan_out
        self._tensors: dict[str, Any] = {}
        homes: dict[str, str] = {}
        with ExitStack() as stack:
            for file in _files(path):
                handle = stack.enter_context(_opened(file))
                names = list(handle.keys())
                self._tensors |= dict.fromkeys(names, handle)
                homes |= dict.fromkeys(names, file.name)
            if (path / _INDEX).is_file() and (stray := homes.items() ^ _weight_map(path).items()):
                name = min(stray)[0]
                raise _invalid(path, f"index and shards do not agree where tensor {name!r} is")
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        self._open.close()

    def rows(self, module: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of a module's weight, out_features x in_features, in float64.

        Raises:
            FedLoraError: INVALID_MODEL for a module without a floating matrix.
        """
        weight = self._weight(module)
        piece: Tensor = weight[:, begin:end].T if self._transposed else weight[begin:end]
        return piece.to(torch.float64)

    def check_modules(self, modules: Iterable[AdaptedModule]) -> None:
        """Refuses weights that do not fit the adapter's modules.

        Raises:
            FedLoraError: INVALID_MODEL for a module that is not there, BASE_MISMATCH for one of
                another shape.
        """
        for module in modules:
            shape = tuple(self._weight(module.path).get_shape())
            stored = (module.out_features, module.in_features)
            wanted = stored[::-1] if self._transposed else stored
            if shape != wanted:
                turned = "false" if self._transposed else "true"
                raise FedLoraError(
                    Reason.BASE_MISMATCH,
                    f"the weight of module {module.path!r} in {self.path} has the shape "
                    f"{list(shape)}, expected {list(wanted)}",
                    hint=f"Set base_fan_in_fan_out = {turned}, as the adapter's layers are stored"
                    if shape == wanted[::-1]
                    else "Name the files of the run's base model",
                )

    def check_fingerprint(self, expected: str, *, trained: Collection[str] = ()) -> None:
        """Refuses another base model than the run's. Reads everything once.

        Args:
            expected: the run's fingerprint.
            trained: `modules_to_save`; their tensors do not count.

        Raises:
            FedLoraError: BASE_MISMATCH.
        """
        found = self.fingerprint(trained=trained)
        if found != expected:
            raise FedLoraError(
                Reason.BASE_MISMATCH,
                f"the base weights in {self.path} have the fingerprint {found}, expected "
                f"{expected}; files that leave out tied weights or hold more than the model have "
                "another one than the model",
                hint=_EXPORT,
            )

    def fingerprint(self, *, trained: Collection[str] = ()) -> str:
        """`sha256:...`, as a worker makes it of the model it has loaded from these files."""
        total = hashlib.sha256()
        for name in sorted(self._tensors):
            if is_inside(name, trained):
                continue
            stored = self._tensors[name].get_slice(name)
            shape, dtype, digest = stored.get_shape(), None, hashlib.sha256()
            for piece in _pieces(stored, shape):
                loaded = piece.to(torch.float32) if piece.is_floating_point() else piece
                dtype = loaded.dtype
                digest.update(loaded.contiguous().flatten().view(torch.uint8).numpy().data)
            total.update(f"{name}\0{dtype}\0{shape}\0{digest.hexdigest()}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def _weight(self, module: str) -> Any:
        name = f"{module}.weight"
        if name not in self._tensors:
            last = module.rpartition(".")[2]
            near = sorted(n for n in self._tensors if n.endswith(f".{last}.weight"))
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"{self.path} has no tensor {name!r}"
                + (f"; the first with that ending is {near[0]!r}" if near else ""),
                hint=_EXPORT,
            )
        weight = self._tensors[name].get_slice(name)
        # Empty slices tell the type without reading anything.
        if len(weight.get_shape()) != 2 or not weight[0:0].is_floating_point():
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"tensor {name!r} in {self.path}: expected a matrix of floating numbers, got "
                f"{weight.get_dtype()} of shape {list(weight.get_shape())}",
                hint="Quantised weights are of no use here: name files in float32, bf16 or f16",
            )
        return weight


def _files(path: Path) -> list[Path]:
    """The files of a model, in the order of their names."""
    if path.is_file():
        return [path]
    if (path / _INDEX).is_file():
        shards = sorted(set(_weight_map(path).values()))
        if outside := [name for name in shards if Path(name).name != name]:
            raise _invalid(path, f"its index names {outside[0]!r}, which is no file of the folder")
        return [path / name for name in shards]
    if (path / _SINGLE).is_file():
        return [path / _SINGLE]
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise _invalid(path, f"expected {_INDEX}, {_SINGLE} or one safetensors file, got {names}")
    return found


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensors and the shards they are in."""
    try:
        weight_map = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _invalid(folder, f"{_INDEX} cannot be read: {error!r}") from error
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise _invalid(folder, f"weight_map of {_INDEX} is no table of file names")
    return weight_map


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise _invalid(file, f"it cannot be opened: {error}") from error


def _pieces(stored: Any, shape: list[int]) -> Iterable[Tensor]:
    """A tensor from its beginning to its end."""
    if not shape:
        yield stored[...]
        return
    width = 1
    for size in shape[1:]:
        width *= size
    step = max(1, _PIECE_NUMBERS // max(1, width))
    for begin in range(0, max(1, shape[0]), step):
        yield stored[begin : begin + step]


def _invalid(path: Path, text: str) -> FedLoraError:
    return FedLoraError(
        Reason.INVALID_MODEL,
        f"no base weights at {path}: {text}",
        hint="Name a safetensors file, or a folder as save_pretrained leaves it",
    )
