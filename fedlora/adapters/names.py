"""PEFT's state-dict keys: the only module that knows how they are spelled.

Exchanged and saved keys (peft 0.21, measured): LoRA `<prefix><path>.lora_A.weight`,
DoRA adds `<path>.lora_magnitude_vector` without `.weight`, HiRA uses `<path>.hira_A`
without `.weight`, a module of `modules_to_save` keeps its own parameter names.
Shapes decide nothing (a square layer defeats them), so keys are parsed.

Tensors that PEFT does not have are ours alone, and are folded into lora_A and lora_B before an
adapter leaves for PEFT: `.lora_core` (the r x r core of Fed-SB), `.lora_selected` (a 0/1 vector
that says which components an update holds), `.base_A` and `.base_B` (what a method has added to
the base model so far, as low-rank factors of scale 1).

A plug-in's tensor belongs to one tensor of the adapter and has its shape: `<name>:<key>`, such as
`ditto/v:base_model.model.query.lora_A.weight`. It is no part of the adapter.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason

__all__ = [
    "PREFIX",
    "Factor",
    "ParsedKey",
    "Part",
    "extra_key",
    "is_inside",
    "lora_key",
    "parse_key",
    "part_key",
    "split_extra",
]

PREFIX = "base_model.model."
"""what peft puts before a module's path"""


class Factor(enum.StrEnum):
    """What a tensor is to its module. The value is the suffix of its key."""

    LORA_A = ".lora_A.weight"
    LORA_B = ".lora_B.weight"
    MAGNITUDE = ".lora_magnitude_vector"
    HIRA_A = ".hira_A"
    HIRA_B = ".hira_B"
    CORE = ".lora_core"
    SELECTED = ".lora_selected"
    BASE_A = ".base_A"
    BASE_B = ".base_B"
    SAVED = ""
    """a parameter of a module trained in full"""


class Part(enum.StrEnum):
    """The role of a tensor in its module, whatever the family of adapters calls it."""

    A = "a"
    """rank x in_features"""
    B = "b"
    """out_features x rank"""
    MAGNITUDE = "magnitude"
    """DoRA's vector of row norms, out_features"""
    CORE = "core"
    """square matrix between B and A, rank x rank"""
    SELECTED = "selected"
    """0/1 vector over the components: which of them an update holds"""
    BASE_A = "base_a"
    BASE_B = "base_b"


_EXTRA = ":"
"""stands in no key of peft's"""

_FACTORS = {
    Part.A: Factor.LORA_A,
    Part.B: Factor.LORA_B,
    Part.MAGNITUDE: Factor.MAGNITUDE,
    Part.CORE: Factor.CORE,
    Part.SELECTED: Factor.SELECTED,
    Part.BASE_A: Factor.BASE_A,
    Part.BASE_B: Factor.BASE_B,
}
_PARTS = {
    **{factor: part for part, factor in _FACTORS.items()},
    Factor.HIRA_A: Part.A,
    Factor.HIRA_B: Part.B,
}


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key taken apart. For SAVED the path is the parameter's own, such as `classifier.weight`."""

    path: str
    factor: Factor

    @property
    def part(self) -> Part | None:
        """The tensor's role in its module; None for a module trained in full."""
        return _PARTS.get(self.factor)


def lora_key(path: str, factor: Factor) -> str:
    """The key of `factor` of the module at `path`."""
    return f"{PREFIX}{path}{factor.value}"


def part_key(path: str, part: Part, *, hira: bool = False) -> str:
    """The key of a part of the module at `path`, in an adapter of LoRA's or of HiRA's kind."""
    if hira and part in (Part.A, Part.B):
        return lora_key(path, Factor.HIRA_A if part is Part.A else Factor.HIRA_B)
    return lora_key(path, _FACTORS[part])


def parse_key(key: str) -> ParsedKey:
    """Takes a key apart.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a key without peft's prefix, one that still holds an
            adapter's name (`lora_A.default.weight`), or an adapted embedding.
    """
    if not key.startswith(PREFIX) or key == PREFIX:
        raise FedLoraError(
            Reason.INVALID_PAYLOAD, f"expected a key beginning with {PREFIX!r}, got {key[:200]!r}"
        )
    rest = key.removeprefix(PREFIX)
    for factor in Factor:
        if factor.value and rest.endswith(factor.value):
            return ParsedKey(rest.removesuffix(factor.value), factor)
    if ".lora_embedding_" in rest:
        raise FedLoraError(
            Reason.INVALID_PAYLOAD,
            f"expected adapted linear layers, got an embedding: {key[:200]!r}",
            hint="Leave embeddings out of target_modules; in modules_to_save they are averaged",
        )
    for mark in ("lora_", "hira_"):
        if f".{mark}" in rest:
            raise FedLoraError(
                Reason.INVALID_PAYLOAD,
                f"unknown adapter key {key[:200]!r}",
                hint="Save the adapter with save_pretrained, which leaves the adapter's name out",
            )
    return ParsedKey(rest, Factor.SAVED)


def extra_key(extra: str, key: str) -> str:
    """The key of what a plug-in holds, under a name of its own, beside a tensor of the adapter."""
    return f"{extra}{_EXTRA}{key}"


def split_extra(key: str) -> tuple[str, str]:
    """The plug-in's name for a tensor, "" for one of the adapter, and the adapter's tensor."""
    extra, mark, rest = key.partition(_EXTRA)
    return (extra, rest) if mark else ("", key)


def is_inside(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor belongs to one of the modules, named as peft's modules_to_save are.

    "classifier" stands for every module whose path ends so, DistilBERT's pre_classifier too.
    """
    return any(f"{module}." in name for module in modules)
