"""The adapter of a run: what PEFT is told, and what it then finds in the base model."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from fedlora.adapters.names import Part, part_key
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = [
    "AdaptedModule",
    "AdapterKind",
    "AdapterLayout",
    "AdapterSpec",
    "BaseModel",
    "Quantization",
    "TaskType",
]


class AdapterKind(enum.StrEnum):
    """Family of low-rank adapters."""

    LORA = "lora"
    DORA = "dora"
    HIRA = "hira"


class Quantization(enum.StrEnum):
    """In how many bits the frozen linear layers are held."""

    NONE = "none"
    """as they were loaded"""
    NF4 = "nf4"
    """4-bit NormalFloat in blocks of 64, scales in 8 bits"""


class TaskType(enum.StrEnum):
    """What the model is trained for; decides head, loss and metrics."""

    SEQUENCE_CLASSIFICATION = "sequence_classification"
    CAUSAL_LM = "causal_lm"

    @property
    def peft_name(self) -> str:
        """The value of `task_type` in PEFT's configuration."""
        return "SEQ_CLS" if self is TaskType.SEQUENCE_CLASSIFICATION else "CAUSAL_LM"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The frozen model all workers of a run hold."""

    model_id: str
    """hub id, local folder, or `package:NAME` for a model that a Python package carries"""
    revision: str = ""
    """revision on the hub; empty for the default branch"""
    fingerprint: str = ""
    """`sha256:...` of the frozen weights; empty: the first worker of the run decides it"""
    quantization: Quantization = Quantization.NONE
    """nf4 holds the frozen linear layers in 4 bits (QLoRA), on every worker alike"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """The adapter as PEFT configures it; equal for all workers of a run."""

    base_model: BaseModel
    task_type: TaskType
    """decides head, loss and metrics: sequence_classification or causal_lm"""
    kind: AdapterKind = AdapterKind.LORA
    """lora, dora or hira; the aggregation methods say which of them they combine"""
    r: int = 8
    """rank of the global adapter"""
    lora_alpha: float = 16.0
    """s = lora_alpha / r, with use_rslora lora_alpha / sqrt(r)"""
    use_rslora: bool = False
    """rank-stabilised scaling, lora_alpha / sqrt(r)"""
    lora_dropout: float = 0.0
    """dropout on the input of lora_A while training"""
    target_modules: tuple[str, ...]
    """module names as peft reads them; one entry may be a regular expression"""
    modules_to_save: tuple[str, ...] = ()
    """modules trained in full and averaged exactly, such as a classification head"""
    labels: tuple[str, ...] = ()
    """names of the classes in the order of the head's outputs"""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, f"adapter.r must be at least 1, got {self.r}"
            )
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"adapter.lora_alpha must be positive, got {self.lora_alpha}",
            )
        if not 0 <= self.lora_dropout < 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"adapter.lora_dropout must lie in [0, 1), got {self.lora_dropout}",
            )
        if not self.target_modules:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "adapter.target_modules is empty",
                hint='Name the linear layers to adapt, for example ["q_proj", "v_proj"]',
            )
        if not self.base_model.model_id:
            raise FedLoraError(Reason.INVALID_ARGUMENT, "model.base is empty")

    def scaling(self, rank: int) -> float:
        """The factor s in s B A at a given rank; 1 for HiRA, which has none."""
        if self.kind is AdapterKind.HIRA:
            return 1.0
        return self.lora_alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedModule:
    """One adapted linear layer: lora_A is rank x in_features, lora_B out_features x rank."""

    path: str
    in_features: int
    out_features: int

    def shape(self, part: Part, rank: int) -> tuple[int, ...]:
        """The shape of a part at a rank; what is added to the base model has one of its own."""
        match part:
            case Part.A | Part.BASE_A:
                return (rank, self.in_features)
            case Part.B | Part.BASE_B:
                return (self.out_features, rank)
            case Part.MAGNITUDE:
                return (self.out_features,)
            case Part.CORE:
                return (rank, rank)
            case Part.SELECTED:
                return (rank,)


@dataclass(frozen=True, kw_only=True)
class AdapterLayout:
    """Which modules of the base model carry the adapter, as a worker found them.

    Both groups are sorted by name, so that equal layouts compare equal.
    """

    modules: tuple[AdaptedModule, ...]
    saved_tensors: tuple[TensorInfo, ...]
    base_fingerprint: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(sorted(self.modules, key=lambda m: m.path)))
        object.__setattr__(
            self, "saved_tensors", tuple(sorted(self.saved_tensors, key=lambda t: t.name))
        )
        if not self.modules:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, "an adapter layout needs at least one adapted module"
            )
        if len({m.path for m in self.modules}) != len(self.modules):
            raise FedLoraError(Reason.INVALID_ARGUMENT, "an adapter layout names a module twice")
        for m in self.modules:
            if m.in_features < 1 or m.out_features < 1:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    f"module {m.path!r} has {m.in_features} inputs and {m.out_features} outputs",
                )

    def manifest(
        self,
        rank: int,
        dtype: DataType,
        *,
        kind: AdapterKind = AdapterKind.LORA,
        parts: Collection[Part] = (Part.A, Part.B),
    ) -> TensorManifest:
        """The tensors of an adapter or update of this layout at `rank`.

        Args:
            rank: of every module.
            dtype: element type of every tensor.
            kind: family of the adapter, which names the factors.
            parts: those that it holds of each module.
        """
        tensors = [
            TensorInfo(
                name=part_key(m.path, part, hira=kind is AdapterKind.HIRA),
                shape=m.shape(part, rank),
                dtype=dtype,
            )
            for m in self.modules
            for part in parts
        ]
        tensors += [replace(t, dtype=dtype) for t in self.saved_tensors]
        return TensorManifest(tensors=tuple(tensors))

    def difference(self, other: AdapterLayout) -> str:
        """First way in which `other` differs, in words; empty if it does not."""
        mine, theirs = {m.path: m for m in self.modules}, {m.path: m for m in other.modules}
        if missing := sorted(mine.keys() - theirs.keys()):
            return f"{len(missing)} adapted modules are missing, first {missing[0]!r}"
        if extra := sorted(theirs.keys() - mine.keys()):
            return f"{len(extra)} modules are adapted that are not in the run, first {extra[0]!r}"
        for path, want in mine.items():
            got = theirs[path]
            if want != got:
                return (
                    f"module {path!r}: expected {want.out_features}x{want.in_features}, "
                    f"got {got.out_features}x{got.in_features}"
                )
        return TensorManifest(tensors=self.saved_tensors).difference(
            TensorManifest(tensors=other.saved_tensors)
        )
