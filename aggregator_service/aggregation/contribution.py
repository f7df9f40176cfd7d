"""What one worker contributes to a round: its update's file, and what it takes to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aggregator_service.aggregation.adapter_file import AdapterFile, Scaling, StoredAdapter
from aggregator_service.aggregation.coded_update import CodedTensors
from fedlora.codecs.base import Codec

__all__ = ["Coding", "Contribution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """What it takes to read an update in a codec."""

    codec: Codec
    base: StoredAdapter
    """the version that the update is a change of"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One worker's update of a round."""

    worker: str
    """name; sums run in its order"""
    weight: float
    """>= 0, need not sum to 1 over the cohort; 0 means absent. What the weighting rule takes for
    the number of examples"""
    path: Path
    """safetensors file with PEFT keys, or in a codec"""
    scaling: Scaling
    """s of lora_B"""
    given_rank: int = 0
    """rank of the adapter that the worker was given; 0: the update's own"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    coding: Coding | None = None
    """None: the file holds the adapter's tensors as they are"""

    def open(self) -> AdapterFile:
        """The update as the adapter that it says, whatever it is written in."""
        if self.coding is None:
            return AdapterFile(self.path, self.scaling, self.worker)
        base = self.coding.base
        tensors = CodedTensors(
            self.path,
            codec=self.coding.codec,
            base=AdapterFile(base.path, base.scaling, "the version it began from"),
            rank=self.given_rank,
            owner=self.worker,
        )
        return AdapterFile(tensors, self.scaling, self.worker)
