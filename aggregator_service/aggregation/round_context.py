"""Where a round stands when its updates are combined: what came before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from aggregator_service.aggregation.adapter_file import StoredAdapter
from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.cohort_files import CohortFiles
from fedlora.adapters.spec import AdapterKind

__all__ = ["BaseModelWeights", "PreparedGrams", "RoundContext", "StoredAdapter"]


class BaseModelWeights(Protocol):
    """The frozen weights, where the server has them."""

    def rows(self, module: str, begin: int, end: int) -> Tensor:
        """Rows of a module's weight, out_features x in_features, in float64."""
        ...


class PreparedGrams(Protocol):
    """What has been computed before the close."""

    def of(self, module: str, cohort: CohortFiles) -> ClientGrams | None:
        """The Gram matrices of a cohort; None where there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """The defaults are those of adapters combined without any server."""

    round: int = 1
    kind: AdapterKind = AdapterKind.LORA
    start: StoredAdapter | None = None
    """the adapter that the round began from"""
    state: Path | None = None
    """what the recipe left after the round before"""
    base_weights: BaseModelWeights | None = None
    grams: PreparedGrams | None = None
    """Gram matrices of the round's updates, made while they arrived"""
    num_workers: int = 0
    """parties that the run has ever known"""
