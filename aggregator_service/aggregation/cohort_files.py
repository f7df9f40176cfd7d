"""A cohort's updates as files, read one module at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Factor, lora_key, parse_key
from fedlora.errors import FedLoraError, Reason

__all__ = ["AdapterFile", "CohortFiles", "Contribution"]

_OTHER_KINDS = {
    Factor.MAGNITUDE: "DoRA",
    Factor.HIRA_A: "HiRA",
    Factor.HIRA_B: "HiRA",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One worker's update of a round."""

    worker: str
    """name; sums run in its order"""
    weight: float
    """>= 0, need not sum to 1 over the cohort; 0 means absent"""
    path: Path
    """safetensors file with PEFT keys"""
    scaling: float | Mapping[str, float]
    """s of lora_B, for all modules or by module path"""


class AdapterFile:
    """A safetensors file with PEFT keys, opened for reading single modules.

    Args:
        path: the file.
        scaling: s of lora_B, for all modules or by module path.
        owner: who it is from, for messages.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a file or key that cannot be read, UNSUPPORTED_METHOD
            for an adapter that is not plain LoRA.
    """

    def __init__(self, path: Path, scaling: float | Mapping[str, float], owner: str) -> None:
        self._scaling, self.owner = scaling, owner
        try:
            # safetensors declares its reader without types.
            self._file = cast("Any", safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise FedLoraError(
                Reason.INVALID_PAYLOAD, f"{owner}: cannot read {path.name}: {error}"
            ) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        """shapes of all tensors by key"""
        self.ranks: dict[str, int] = {}
        """rank of each adapted module by path, sorted"""
        for key in sorted(self._file.keys()):
            self.shapes[key] = tuple(self._file.get_slice(key).get_shape())
            parsed = parse_key(key)
            if kind := _OTHER_KINDS.get(parsed.factor):
                raise FedLoraError(
                    Reason.UNSUPPORTED_METHOD,
                    f"{owner}: expected plain LoRA, found the {kind} tensor {key!r}",
                    hint=f"The mean of {kind} updates is not a mean of products; train with LoRA",
                )
            if parsed.factor is Factor.LORA_A:
                self.ranks[parsed.path] = self.shapes[key][0]
        self.saved = tuple(k for k in self.shapes if parse_key(k).factor is Factor.SAVED)
        """keys of tensors trained in full"""
        for module in self.ranks:
            if lora_key(module, Factor.LORA_B) not in self.shapes:
                raise FedLoraError(
                    Reason.INVALID_PAYLOAD, f"{owner}: module {module!r} has lora_A but no lora_B"
                )
        if 2 * len(self.ranks) + len(self.saved) != len(self.shapes):
            raise FedLoraError(Reason.INVALID_PAYLOAD, f"{owner}: a lora_B without its lora_A")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.__exit__(None, None, None)

    def features(self, module: str) -> tuple[int, int]:
        """(out_features, in_features)."""
        b, a = (self.shapes[lora_key(module, f)] for f in (Factor.LORA_B, Factor.LORA_A))
        return b[0], a[1]

    def factors(self, module: str, device: torch.device | str = "cpu") -> LoraFactors:
        """The module's factors in float64, scale folded into B.

        Raises:
            FedLoraError: NOT_FINITE; INVALID_ARGUMENT for a module without scaling.
        """
        a = self.tensor(lora_key(module, Factor.LORA_A), device)
        b = self.tensor(lora_key(module, Factor.LORA_B), device)
        if isinstance(self._scaling, Mapping):
            if module not in self._scaling:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT, f"{self.owner}: no scaling for module {module!r}"
                )
            return LoraFactors.fold(a, b, self._scaling[module])
        return LoraFactors.fold(a, b, self._scaling)

    def tensor(self, key: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor, in float64."""
        tensor: Tensor = self._file.get_tensor(key).to(device=device, dtype=torch.float64)
        if not bool(torch.isfinite(tensor).all()):
            raise FedLoraError(
                Reason.NOT_FINITE, f"{self.owner}: tensor {key!r} holds NaN or infinity"
            )
        return tensor

    def dtype(self) -> str:
        """Element type of the first factor, in safetensors' words."""
        first = lora_key(next(iter(self.ranks)), Factor.LORA_A)
        return str(self._file.get_slice(first).get_dtype())


class CohortFiles:
    """The updates of positive weight, sorted by worker, with one layout among them.

    Raises:
        FedLoraError: INVALID_ARGUMENT for weights that make no cohort or a worker named twice,
            LAYOUT_MISMATCH for updates of different modules or shapes; what `AdapterFile` raises.
    """

    def __init__(self, contributions: Sequence[Contribution]) -> None:
        _check_weights(contributions)
        present = sorted((c for c in contributions if c.weight > 0), key=lambda c: c.worker)
        weights_U = torch.tensor([c.weight for c in present], dtype=torch.float64)
        self.weights_U = weights_U / weights_U.sum()
        """of the updates present, in float64, summing to 1"""
        self._stack = contextlib.ExitStack()
        try:
            self.files = [
                self._stack.enter_context(AdapterFile(c.path, c.scaling, c.worker)) for c in present
            ]
            for other in self.files[1:]:
                _check_layout(self.files[0], other)
        except BaseException:
            self._stack.close()
            raise
        self.modules = tuple(self.files[0].ranks)
        """paths of the adapted modules, sorted"""
        self.saved = {key: self.files[0].shapes[key] for key in self.files[0].saved}
        """shapes of the tensors trained in full, by key, sorted"""
        self.largest_rank = max(max(f.ranks.values()) for f in self.files)
        """over modules and workers"""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all files."""
        self._stack.__exit__(kind, error, trace)

    def factors(self, module: str, device: torch.device | str) -> list[LoraFactors]:
        """One module of every update, in float64, scale folded in."""
        return [file.factors(module, device) for file in self.files]

    def features(self, module: str) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.files[0].features(module)


def _check_weights(contributions: Sequence[Contribution]) -> None:
    names = [c.worker for c in contributions]
    if len(set(names)) != len(names):
        raise FedLoraError(Reason.INVALID_ARGUMENT, f"a worker occurs twice in {sorted(names)}")
    bad = {c.worker: c.weight for c in contributions if not 0 <= c.weight < float("inf")}
    if bad:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"weights must be finite and not negative, got {json.dumps(bad)}",
        )
    if not any(c.weight > 0 for c in contributions):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"none of the {len(contributions)} updates has a positive weight",
        )


def _check_layout(first: AdapterFile, other: AdapterFile) -> None:
    def refuse(what: str) -> FedLoraError:
        return FedLoraError(
            Reason.LAYOUT_MISMATCH,
            f"{first.owner} and {other.owner} adapt different layers: {what}",
            hint="Updates can be combined only for one base model and the same target_modules",
        )

    if different := sorted(first.ranks.keys() ^ other.ranks.keys()):
        holder = first if different[0] in first.ranks else other
        raise refuse(f"module {different[0]!r} is in {holder.owner} only")
    for module in first.ranks:
        if (mine := first.features(module)) != (theirs := other.features(module)):
            raise refuse(
                f"module {module!r} is {mine[0]}x{mine[1]} in one and "
                f"{theirs[0]}x{theirs[1]} in the other"
            )
    if different := sorted(set(first.saved) ^ set(other.saved)):
        holder = first if different[0] in first.saved else other
        raise refuse(f"tensor {different[0]!r} is in {holder.owner} only")
    for key in first.saved:
        if first.shapes[key] != other.shapes[key]:
            raise refuse(
                f"tensor {key!r} is {list(first.shapes[key])} in one and "
                f"{list(other.shapes[key])} in the other"
            )
