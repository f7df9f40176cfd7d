"""FedEx-LoRA: average the factors, and add what that loses to the base model.

Paper   Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient
        Fine-Tuning of Foundation Models", 2025, arXiv:2410.09432.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u,  base <- base + (sum_u w_u B_u A_u - B A).
Bias    none: W0 + base + B A after the round is W0 + base + T before it.
Needs   one rank for the whole cohort; workers that add a low-rank change to their frozen
        weights.
Cost    about 4 R^2 (D + K) + 20 R^3 flops per module, R = (U + 2) r; no D x K matrix. The
        stack that readers fetch whole every round grows by (U - 1) r, up to min(D, K) or the cap.

Readings. The paper weighs clients equally: w_u = n_u / N here, in both terms. It ships the
residual as a dense matrix, and considers its best approximation of a given rank; here it is
factors of its own rank, at most (U - 1) r by the covariance identity (`centred`), and the cap is
on the running stack (test_fedex_lora.py: three rounds on a layer that is not square, and the
bound on the rank).

The residual sits in frozen weights and gets no gradient: what clients disagree on is kept, and
not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.base_stack import check_max_base_rank
from aggregator_service.aggregation.compression.residual import Residual
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank

__all__ = ["FedExLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedExLoRA(MethodDefaults):
    """Factor mean with its residual."""

    max_base_rank: int = 0
    """cap on the rank of what has been added to the base model; 0 for none but min(d, k)"""

    name: ClassVar[str] = "fedex_lora"
    about: ClassVar[About] = About(
        title="FedEx-LoRA",
        paper="Singhal et al. 2025, arXiv:2410.09432",
        exactness="exact",
        base_rank="t(U-1)r",
        cost="4R^2(d+k) + 20R^3",
        needs="one rank for the cohort; workers that change their frozen weights",
        choose="exact, and the clients' basis should last",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
    )

    def __post_init__(self) -> None:
        check_max_base_rank(self.name, self.max_base_rank)

    @property
    def compression(self) -> Residual:
        """The residual goes into the base model."""
        return Residual(max_base_rank=self.max_base_rank)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The means of the factors; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        return Combination(factors=factor_mean(cohort.members, cohort.weights_U))
