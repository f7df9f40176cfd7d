"""One adapter on disk, read part by part: an update, a published version, a saved PEFT adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Factor, Part, parse_key, split_extra
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import is_finite
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = [
    "AdapterFile",
    "SafetensorsFile",
    "Scaling",
    "StoredAdapter",
    "TensorSource",
    "read_manifest",
]

Scaling = float | Mapping[str, float] | Callable[[int], float]
"""s of lora_B: for all modules, by module path, or of a module's rank"""

_NARROW = ("F32", "BF16", "F16")
"""element types, in safetensors' words, that float32 holds exactly"""

_EXTRAS = (Part.MAGNITUDE, Part.CORE, Part.SELECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """An adapter on disk, and the s with which its readers serve it."""

    path: Path
    scaling: Scaling


class TensorSource(Protocol):
    """Named tensors that are read one by one."""

    def names(self) -> Iterable[str]:
        """Of all of them."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """Of one tensor."""
        ...

    def dtype(self, key: str) -> str:
        """Its element type, in safetensors' words."""
        ...

    def tensor(self, key: str) -> Tensor:
        """Its values."""
        ...

    def close(self) -> None:
        """Ends reading."""
        ...


class SafetensorsFile:
    """A file's tensors as they are stored.

    Args:
        path: the file.
        owner: who it is from, for messages.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a file that cannot be read.
    """

    def __init__(self, path: Path, owner: str) -> None:
        try:
            # safetensors declares its reader without types.
            self._file = cast("Any", safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise FedLoraError(
                Reason.INVALID_PAYLOAD, f"{owner}: cannot read {path.name}: {error}"
            ) from error

    def names(self) -> Iterable[str]:
        """Of all tensors."""
        return cast("Iterable[str]", self._file.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """From the header."""
        return tuple(self._file.get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """From the header."""
        return str(self._file.get_slice(key).get_dtype())

    def tensor(self, key: str) -> Tensor:
        """A copy of the stored values."""
        return cast("Tensor", self._file.get_tensor(key))

    def close(self) -> None:
        """Closes the file."""
        self._file.__exit__(None, None, None)


class AdapterFile:
    """An adapter with PEFT keys (`fedlora.adapters.names`), opened for single parts.

    Args:
        source: a safetensors file, or what else holds its tensors; closed with this.
        scaling: s of lora_B.
        owner: who it is from, for messages.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a file or key that cannot be read.
    """

    def __init__(self, source: Path | TensorSource, scaling: Scaling, owner: str) -> None:
        self._scaling, self.owner = scaling, owner
        self._tensors = SafetensorsFile(source, owner) if isinstance(source, Path) else source
        self.shapes: dict[str, tuple[int, ...]] = {}
        """shapes of the adapter's tensors by key"""
        self._keys: dict[str, dict[Part, str]] = {}
        self.is_hira = False
        """whether the factors are HiRA's, of the update W0 o (B A)"""
        names = sorted(self._tensors.names())
        self.extras_of_plugins = tuple(key for key in names if split_extra(key)[0])
        """keys of what plug-ins have put beside the adapter, sorted"""
        for key in names:
            if split_extra(key)[0]:
                continue
            self.shapes[key] = self._tensors.shape(key)
            parsed = parse_key(key)
            self.is_hira |= parsed.factor in (Factor.HIRA_A, Factor.HIRA_B)
            if parsed.part is not None:
                self._keys.setdefault(parsed.path, {})[parsed.part] = key
        self.modules = tuple(sorted(self._keys))
        """paths of the adapted modules, sorted"""
        self.saved = tuple(k for k in self.shapes if parse_key(k).part is None)
        """keys of tensors trained in full"""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends reading."""
        self._tensors.close()

    def parts(self, module: str) -> tuple[Part, ...]:
        """The parts of a module that the file holds; none for a module it does not know."""
        return tuple(self._keys.get(module, ()))

    def shape(self, module: str, part: Part) -> tuple[int, ...]:
        """Of a part that the file holds."""
        return self.shapes[self._keys[module][part]]

    def rank(self, module: str) -> int:
        """Of a module with both factors, or with a core alone."""
        parts = self._keys[module]
        if Part.A in parts:
            return self.shape(module, Part.A)[0]
        if Part.B in parts:
            return self.shape(module, Part.B)[1]
        return self.shape(module, Part.CORE)[0]

    def features(self, module: str) -> tuple[int, int]:
        """(out_features, in_features) of a module with both factors."""
        return self.shape(module, Part.B)[0], self.shape(module, Part.A)[1]

    def check_complete(self) -> None:
        """INVALID_PAYLOAD unless every module has both factors."""
        for module in self.modules:
            for part, missing in ((Part.A, "lora_A"), (Part.B, "lora_B")):
                if part not in self._keys[module]:
                    raise FedLoraError(
                        Reason.INVALID_PAYLOAD,
                        f"{self.owner}: module {module!r} has no {missing}",
                    )

    def scale(self, module: str, rank: int) -> float:
        """S of a module at a rank; INVALID_ARGUMENT for a module without one."""
        if self.is_hira:
            return 1.0
        if callable(self._scaling):
            return self._scaling(rank)
        if isinstance(self._scaling, Mapping):
            if module not in self._scaling:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT, f"{self.owner}: no scaling for module {module!r}"
                )
            return self._scaling[module]
        return self._scaling

    def factors(
        self,
        module: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> LoraFactors:
        """The module's factors, scale and core folded into B.

        Args:
            module: its path.
            device: where they go.
            dtype: float64, or float32 where that `is_narrow`.

        Raises:
            FedLoraError: NOT_FINITE; INVALID_ARGUMENT for a module without scaling.
        """
        a = self.part(module, Part.A, device, dtype)
        b = self.part(module, Part.B, device, dtype)
        if Part.CORE in self._keys[module]:
            b = b @ self.part(module, Part.CORE, device, dtype)
        scale = self.scale(module, a.shape[0])
        return LoraFactors(a, b) if scale == 1 else LoraFactors.fold(a, b, scale)

    def is_narrow(self, module: str) -> bool:
        """Whether float32 holds the module's folded factors as exactly as float64.

        Powers of two fold without rounding, as lora_alpha / r mostly is one, unless a product is
        beyond what float32 can hold.
        """
        keys = self._keys[module]
        if not {Part.A, Part.B} <= {*keys} or Part.CORE in keys:
            return False
        stored = (self._tensors.dtype(keys[part]) for part in (Part.A, Part.B))
        return all(name in _NARROW for name in stored) and (
            math.frexp(self.scale(module, self.rank(module)))[0] == 0.5
        )

    def base(self, module: str, device: torch.device | str = "cpu") -> LoraFactors | None:
        """What has been added to the base model, in float64; None for nothing."""
        if Part.BASE_A not in self.parts(module):
            return None
        return LoraFactors(
            self.part(module, Part.BASE_A, device), self.part(module, Part.BASE_B, device)
        )

    def extras(self, module: str, device: torch.device | str = "cpu") -> dict[Part, Tensor]:
        """The parts that are neither factors nor base, in float64."""
        return {p: self.part(module, p, device) for p in _EXTRAS if p in self.parts(module)}

    def part(
        self,
        module: str,
        part: Part,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """One part."""
        return self.tensor(self._keys[module][part], device, dtype)

    def tensor(
        self,
        key: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """One tensor; NOT_FINITE if it holds what is no number."""
        tensor: Tensor = self.raw(key).to(device=device, dtype=dtype)
        if not is_finite(tensor):
            raise FedLoraError(
                Reason.NOT_FINITE, f"{self.owner}: tensor {key!r} holds NaN or infinity"
            )
        return tensor

    def raw(self, key: str) -> Tensor:
        """One tensor as it is stored."""
        return self._tensors.tensor(key)

    def key(self, module: str, part: Part) -> str:
        """The key of a part that the file holds."""
        return self._keys[module][part]

    def dtype(self) -> str:
        """Element type of the first tensor of a module, in safetensors' words."""
        first = next(iter(self._keys[self.modules[0]].values()))
        return self._tensors.dtype(first)


def read_manifest(path: Path) -> TensorManifest:
    """The tensors of a file in one of the wire's element types."""
    types = {d.safetensors_name: d for d in DataType}
    with cast("Any", safe_open(path, framework="pt")) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return TensorManifest(
            tensors=tuple(
                TensorInfo(name=key, shape=tuple(s.get_shape()), dtype=types[s.get_dtype()])
                for key, s in slices.items()
            )
        )
