"""FedSVD: average B over a common A, and let the server turn A to where the product is.

Paper   Lee, Park, Lee, Wagner, Seong, Bocklet, Lee, Hwang, "FedSVD: Adaptive
        Orthogonalization for Private Federated Learning with LoRA", 2025, arXiv:2505.12805.
Rule    clients train B only;  (sum_u w_u B_u) A = U S V^T;  B <- U S,  A <- V^T.
Bias    none: the product has rank r at most, so the decomposition is only a change of factors.
        A stays orthonormal, so that noise added to B for privacy is not amplified by it.
Needs   workers that leave A as it is during a round.
Cost    2 R D flops for the mean, then about 4 r^2 (D + K) + 20 r^3: an r x r core, R = U r.

The rows of V^T are a rotated orthonormal basis of A's rows, the strongest direction first. So they
never leave the space in which the first A was drawn, as in `ffa_lora`; what adapts is the basis,
and with it how far a step moves each direction. Where the product has a singular value of zero,
the basis is completed within that space, and nothing is drawn at random.

Readings. The paper has one rank for all. Here a worker of rank r_u has the first r_u rows of A,
the strongest, and its B is padded with zero columns; the mean product is still exact
(test_fedsvd.py). Above rank K rows cannot all be orthonormal: the first K are, and the others
are spare.

Shape suffixes: R rank, N min(R, K), K in_features, D out_features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.common_factor import mean_over_common_a
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.plan import RoundPlan

__all__ = ["FedSVD"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedSVD(MethodDefaults):
    """Mean of B, refactored with orthonormal rows in A."""

    name: ClassVar[str] = "fedsvd"
    about: ClassVar[About] = About(
        title="FedSVD",
        paper="Lee et al. 2025, arXiv:2505.12805",
        exactness="exact; with DoRA for B A, not for the weights",
        cost="2Rd + 4r^2(d+k) + 20r^3",
        needs="workers that freeze A during a round",
        choose="as ffa_lora, with an A that is orthonormal and sorted by strength",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=False,
        mixed_ranks=True,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """B is trained and sent; both are new after the round."""
        return (RoundPlan(trained=(Part.B,)),)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of B over the common A, refactored; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        mean = mean_over_common_a(self.name, cohort)
        return Combination(factors=_refactored(mean.a_RK, mean.b_DR))


def _refactored(a_RK: Tensor, b_DR: Tensor) -> LoraFactors:
    """B A = (U S) V^T with N orthonormal rows that span A's."""
    q_KN, r_NR = torch.linalg.qr(a_RK.T)
    _, r_b = torch.linalg.qr(b_DR)
    # All of V, so that rows without a singular value complete the basis.
    _, _, vh_NN = torch.linalg.svd(r_b @ r_NR.T, full_matrices=True)
    a_NK = vh_NN @ q_KN.T
    b_DN = b_DR @ (r_NR.T @ vh_NN.T)
    largest = b_DN.abs().argmax(dim=0, keepdim=True)
    negative_N = b_DN.gather(0, largest).squeeze(0) < 0
    signs_N = torch.where(negative_N, -1.0, 1.0).to(b_DN)
    return LoraFactors(a_NK * signs_N[:, None], b_DN * signs_N)
