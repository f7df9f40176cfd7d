"""energy: the fewest components that hold a given share of the product's energy.

Paper   Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate
        Federated Fine-Tuning of Large Language Models", 2025, arXiv:2506.09199.
Rule    B A = U S V^T;  q = min { i : sum_{j<=i} s_j^2 >= threshold * sum_j s_j^2 };
        U_q S_q V_q^T, published as B = U_q S_q, A = V_q^T. q is each layer's own.
Bias    at most sqrt(1 - threshold) of the product's norm, the least of any adapter of rank q;
        none at threshold 1. A cap on q may cost more.
Needs   readers that take another rank in every layer, above the run's rank too.
Cost    R^2 (D + K) + 12 R^3 flops (Gram core), R the combination's rank; where R is large or
        next to nothing is cut, 4 R^2 (D + K) + 20 R^3 (QR core).

Readings. Energy is the sum of squares, so that the threshold bounds the Frobenius error
(test_energy.py: the error at each threshold). The rank is not capped unless `max_rank` says so:
the run's rank says what workers train, and each is sent the first components at its own rank;
the global adapter holds what the threshold asks for. `restart` is the other answer to what
becomes of components that a worker has no room for: all of them go into the base model, and
everybody begins with a fresh adapter. The paper's own answer is not known to us.

Shape suffix: N singular values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import Combination, ModuleResult, Properties, Work
from aggregator_service.aggregation.base_stack import check_max_base_rank
from aggregator_service.aggregation.compression.merge import Merge
from aggregator_service.aggregation.gauge import sorted_factors
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.spare_components import filled, fresh
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.stacked import block_product
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import ProductSVD, decompose_to, effective_rank
from fedlora.runs.method import Gauge

__all__ = ["Energy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Truncation at a share of the energy, layer by layer."""

    threshold: float = 0.99
    """share of the sum of squared singular values that is kept; 1 keeps the product as it is"""
    min_rank: int = 1
    """least rank of a layer; spare components have random rows in A and zeros in B"""
    max_rank: int = 0
    """greatest rank of a layer, whatever the threshold asks for; 0 for no cap"""
    restart: bool = False
    """add the kept components to the base model and publish a fresh adapter of the run's rank"""
    max_base_rank: int = 0
    """with restart: cap on the rank of what has been added to the base model; 0 for none"""

    name: ClassVar[str] = "energy"
    stacks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"energy: expected a threshold above 0 and at most 1, got {self.threshold}",
            )
        if self.min_rank < 1 or self.max_rank < 0 or 0 < self.max_rank < self.min_rank:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "energy: expected min_rank >= 1 and max_rank 0 (no cap) or at least min_rank, got "
                f"{self.min_rank} and {self.max_rank}",
            )
        check_max_base_rank("energy", self.max_base_rank)

    def properties(self, combined: Properties) -> Properties:
        """A new basis, sorted, since workers have room for its first components only.

        Exact if nothing is cut off.
        """
        kept_whole = self.threshold == 1 and self.max_rank == 0
        cut = replace(
            combined,
            exact=combined.exact and kept_whole,
            keeps_basis=False,
            strongest_first=True,
        )
        return self._merge.properties(cut) if self.restart else cut

    def compress(self, combination: Combination, cohort: ModuleCohort, work: Work) -> ModuleResult:
        """See `base.CompressionRule`."""
        stack = combination.factors
        svd = decompose_to(block_product(stack), self._wanted)
        kept = svd.rank
        measured = replace(
            combination, measurements={**combination.measurements, **_measured(svd, kept)}
        )
        if self.restart:
            factors = _factors(svd, kept) if kept else stack
            return self._merge.compress(replace(measured, factors=factors), cohort, work)
        first = cohort.members[0]
        rank = max(self.min_rank, kept)
        if kept:
            factors = filled(_factors(svd, kept), rank, work.generator)
        else:
            shape = (first.out_features, first.in_features)
            factors = fresh(*shape, rank, first.a_RK.device, work.generator)
        return ModuleResult(
            factors=factors,
            base=cohort.start.base if cohort.start else None,
            extras=combination.extras,
            state=combination.state,
            measurements=measured.measurements,
        )

    def _wanted(self, values_N: Tensor) -> int:
        wanted = max(self.min_rank, energy_rank(values_N, self.threshold))
        return min(wanted, self.max_rank) if self.max_rank else wanted

    @property
    def _merge(self) -> Merge:
        return Merge(max_base_rank=self.max_base_rank)


def _factors(svd: ProductSVD, rank: int) -> LoraFactors:
    cut = ProductSVD(svd.left_DQ[:, :rank], svd.values_N, svd.right_QK[:rank])
    return sorted_factors(cut, Gauge.ORTHONORMAL_A)


def energy_rank(values_N: Tensor, threshold: float) -> int:
    """The least q whose first q values hold that share of the sum of squares; 0 for no energy.

    What is left is added up from the small end, so that thresholds near 1 keep their meaning.
    """
    tails_N = values_N.square().flip(0).cumsum(0).flip(0)
    if len(tails_N) == 0:
        return 0
    allowed = (1 - threshold) * float(tails_N[0])
    return int(torch.count_nonzero(tails_N > allowed))


def _measured(svd: ProductSVD, kept: int) -> dict[str, float]:
    whole, lost = svd.tail_norm(0), svd.tail_norm(kept)
    return {
        "kept_rank": float(kept),
        "effective_rank": effective_rank(svd.values_N),
        "truncation_error": lost / whole if whole > 0 else 0.0,
    }
