"""FLoRIST: one global pair of as many components as hold a given share of the energy.

Paper   Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate
        Federated Fine-Tuning of Large Language Models", 2025, arXiv:2506.09199.
Rule    T = sum_u w_u B_u A_u = U S V^T from the stacked factors, never formed;
        q = min { i : sum_{j<=i} s_j^2 >= threshold * sum_j s_j^2 } per layer;
        B = U_q S_q, A = V_q^T.
Bias    |T - B A|^2 <= (1 - threshold) |T|^2; exact at threshold 1.
Needs   nothing but the factors; any mix of ranks; readers that take another rank per layer.
Cost    about 4 R^2 (D + K) + 20 R^3 flops per module, R = sum of ranks. The paper decomposes
        both stacks and then an R x R core; a QR factorisation of each in place of the first two
        decompositions gives the same core up to rotations at lower cost.

Readings. What a worker of lower rank than q does: each is sent the first components, at its
rank (`restart` false), or the pair goes into the base model and everybody starts afresh
(`restart` true). The paper's own answer and its thresholds are not known to us; 0.99 is our
default. See `compression/energy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.energy import Energy
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.spec import AdapterKind

__all__ = ["FLoRIST"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FLoRIST(MethodDefaults):
    """Mean product, thresholded by energy."""

    threshold: float = 0.99
    """share of the sum of squared singular values that is kept; 1 keeps all"""
    min_rank: int = 1
    """least rank of a layer"""
    max_rank: int = 0
    """greatest rank of a layer, whatever the threshold asks for; 0 for no cap"""
    restart: bool = False
    """add the pair to the base model and publish a fresh adapter, instead of the pair"""
    max_base_rank: int = 0
    """with restart: cap on the rank of what has been added to the base model; 0 for none"""

    name: ClassVar[str] = "florist"
    about: ClassVar[About] = About(
        title="FLoRIST",
        paper="Ramesh and Dass 2025, arXiv:2506.09199",
        exactness="to a chosen share of the energy",
        cost="4R^2(d+k) + 20R^3",
        needs="nothing; with restart, workers that change their frozen weights",
        choose="a bound on the error instead of a rank",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=False,
        keeps_basis=False,
        mixed_ranks=True,
        gauge_free=True,
        strongest_first=True,
        kinds=frozenset(AdapterKind),
    )

    def __post_init__(self) -> None:
        _ = self.compression  # refuses options out of range

    @property
    def compression(self) -> Energy:
        """Truncation at the threshold, with orthonormal rows in A."""
        return Energy(
            threshold=self.threshold,
            min_rank=self.min_rank,
            max_rank=self.max_rank,
            restart=self.restart,
            max_base_rank=self.max_base_rank,
        )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:  # noqa: ARG002
        """T itself, as the stack of all products; see `base.Method`."""
        return Combination(factors=cohort.stack())
