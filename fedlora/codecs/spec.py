"""Which codec a run writes its updates in. Read at the edge, so torch is not loaded for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason

__all__ = ["CodecName", "CodecSpec"]


class CodecName(enum.StrEnum):
    """How the numbers of an update are written."""

    BF16 = "bf16"
    """each in 16 bits, 8 of them its leading digits"""
    F16 = "f16"
    """each in 16 bits, 11 of them its leading digits, in a narrow range"""
    INT8 = "int8"
    """each in 8 bits, with one scale for each component"""
    NF4 = "nf4"
    """each in 4 bits, with one scale for each 64"""
    TOP_K = "top_k"
    """the largest of them in 16 bits each, the others not at all"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """How workers write what a round's training has changed; docs/codecs.md helps to choose."""

    name: CodecName
    """bf16, f16, int8, nf4 or top_k"""
    error_feedback: bool = True
    """add what the codec took from a worker's update to its next one, where the method's factors
    keep their components from round to round"""
    kept_share: float = 0.05
    """share of each tensor's numbers that top_k sends"""

    def __post_init__(self) -> None:
        if not 0 < self.kept_share <= 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"codec.kept_share must lie in (0, 1], got {self.kept_share}",
            )
