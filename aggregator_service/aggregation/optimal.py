"""optimal: the best adapter of a given rank, by truncated singular value decomposition.

Source  Eckart and Young, "The approximation of one matrix by another of lower rank",
        Psychometrika 1, 1936. In federated LoRA: FlexLoRA (Bai et al. 2024, arXiv:2402.11505)
        in the gauge `orthonormal_a`, there by a dense decomposition.
Rule    T = sum_u w_u B_u A_u = U S V^T;  B A = U_q S_q V_q^T, factored as `gauge` says.
Bias    none at q >= rank(T); else the least error of any adapter of rank q,
        sqrt(sum_{i>q} s_i^2), which is also what `fedit` and `flora_na` are measured against.
Needs   nothing but the factors; any mix of ranks; any result rank.
Cost    about 4 R^2 (D + K) + 20 R^3 flops per module (QR core), R = sum of ranks; T is never
        formed.

A result's components are T's singular vectors, not the clients' components: state that lives
in factor space (Adam's moments) is void after it, unless the gauge is closest_a or procrustes.
Where T has a lower rank than asked for, spare components get random rows in A and zeros in B.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import ModuleResult, Publication, active_cohort
from aggregator_service.aggregation.fedit import factor_mean
from aggregator_service.aggregation.gauge import Gauge, filled, fresh, in_gauge
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import effective_rank, gram_core_svd, qr_core_svd

__all__ = ["Core", "Optimal"]


class Core(enum.StrEnum):
    """How the large products are reduced to a small one (`fedlora.numerics.lowrank`)."""

    QR = "qr"
    GRAM = "gram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimal:
    """Truncated singular value decomposition of the mean product."""

    gauge: Gauge = Gauge.BALANCED
    """balanced, orthonormal_a, orthonormal_b, closest_a or procrustes; the last two stay close
    to the factor mean"""
    core: Core = Core.QR
    """qr, or gram: faster for many clients, singular values below 1e-7 of the largest are lost"""

    name: ClassVar[str] = "optimal"
    mixed_ranks: ClassVar[bool] = True
    keeps_basis: ClassVar[bool] = False

    def aggregate_module(
        self,
        cohort: Sequence[LoraFactors],
        weights_U: Tensor,
        *,
        rank: int,
        generator: torch.Generator | None = None,
        publication: Publication | None = None,  # noqa: ARG002 - optimal before rounding
    ) -> ModuleResult:
        """The mean product's best approximation of that rank; see `base.Aggregator`."""
        if rank < 1:
            raise FedLoraError(Reason.INVALID_ARGUMENT, f"rank must be at least 1, got {rank}")
        members, weights_U = active_cohort(cohort, weights_U)
        generator = generator or torch.Generator()
        first = members[0]
        weighted = [
            f.b_DR.to(torch.float64) * w for f, w in zip(members, weights_U.tolist(), strict=True)
        ]
        decompose = qr_core_svd if self.core is Core.QR else gram_core_svd
        svd = decompose(weighted, [f.a_RK for f in members], rank=rank)
        ideal, lost = svd.tail_norm(0), svd.tail_norm(rank)
        measurements = {
            "kept_rank": float(svd.rank),
            "effective_rank": effective_rank(svd.values_N),
            "truncation_error": lost / ideal if ideal > 0 else 0.0,
        }
        if svd.rank == 0:
            zero = fresh(first.out_features, first.in_features, rank, first.a_RK, generator)
            return ModuleResult(factors=zero, measurements=measurements)
        reference = factor_mean(members, weights_U)
        factors = in_gauge(svd, self.gauge, reference.padded(max(reference.rank, svd.rank)))
        result = LoraFactors(factors.a_RK, factors.b_DR).to(first.dtype)
        return ModuleResult(factors=filled(result, rank, generator), measurements=measurements)
