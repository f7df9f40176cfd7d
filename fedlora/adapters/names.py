"""PEFT's state-dict keys: the only module that knows how they are spelled.

Exchanged and saved keys (peft 0.21, measured): LoRA `<prefix><path>.lora_A.weight`,
DoRA adds `<path>.lora_magnitude_vector` without `.weight`, HiRA uses `<path>.hira_A`
without `.weight`, a module of `modules_to_save` keeps its own parameter names.
Shapes decide nothing (a square layer defeats them), so keys are parsed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason

__all__ = ["PREFIX", "Factor", "ParsedKey", "lora_key", "parse_key"]

PREFIX = "base_model.model."
"""what peft puts before a module's path"""


class Factor(enum.StrEnum):
    """What a tensor is to its module. The value is the suffix of its key."""

    LORA_A = ".lora_A.weight"
    LORA_B = ".lora_B.weight"
    MAGNITUDE = ".lora_magnitude_vector"
    HIRA_A = ".hira_A"
    HIRA_B = ".hira_B"
    SAVED = ""
    """a parameter of a module trained in full"""


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key taken apart. For SAVED the path is the parameter's own, such as `classifier.weight`."""

    path: str
    factor: Factor


def lora_key(path: str, factor: Factor) -> str:
    """The key of `factor` of the module at `path`."""
    return f"{PREFIX}{path}{factor.value}"


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
    for mark in ("lora_", "hira_"):
        if f".{mark}" in rest:
            raise FedLoraError(
                Reason.INVALID_PAYLOAD,
                f"unknown adapter key {key[:200]!r}",
                hint="Save the adapter with save_pretrained, which leaves the adapter's name out",
            )
    return ParsedKey(rest, Factor.SAVED)
