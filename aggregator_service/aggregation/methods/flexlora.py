"""FlexLoRA: average the products, and give each client the best adapter of its rank.

Paper   Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under
        Heterogeneous Tasks and Client Resources", 2024, arXiv:2402.11505.
Rule    T = sum_u w_u B_u A_u = U S V^T;  B = U_q S_q, A = V_q^T; a client of rank r gets the
        first r components.
Bias    sqrt(sum_{i>q} s_i^2), the least of any adapter of rank q; none at q >= rank(T).
Needs   nothing but the factors; any mix of ranks.
Cost    about 4 R^2 (D + K) + 20 R^3 flops per module (QR core), R = sum of ranks; one
        factorisation serves all ranks.

Readings. The paper aggregates with the data weights in every component; so does `partition =
none`. A component that only some clients have room for is then damped every round by the weight
of the others, and its energy decays geometrically ("rank collapse", Wu, Hu, Min, Wang, 2026,
arXiv:2602.13486). `partition = owners` is our reading of their remedy, raFLoRA,

    T' = sum_j sum_{u: r_u > j} (w_u / W_j) b_uj a_uj^T,   W_j = sum of w_u over r_u > j,

component j of a client being the product of its j-th column of B and row of A: each component is
averaged over the clients that own it. Components are told apart by their number, which means
something because each client began with the first components of one decomposition. T' is not T:
with mixed ranks the method is then not exact at any rank (test_flexlora.py holds this formula,
and the decay with and without it).

Shape suffix: R rank.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.truncate import Core, Truncate
from aggregator_service.aggregation.factor_means import owners_weight
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.method import Gauge

__all__ = ["FlexLoRA", "Partition"]


class Partition(enum.StrEnum):
    """Over whom a component is averaged."""

    NONE = "none"
    OWNERS = "owners"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexLoRA(MethodDefaults):
    """Mean product, decomposed, sliced per client."""

    partition: Partition = Partition.NONE
    """none: every component over all clients; owners: over those whose rank reaches it, which
    keeps high components alive where ranks differ"""
    core: Core = Core.AUTO
    """auto, qr, gram (singular values below 1e-7 of the largest are lost) or randomised (for many
    clients; within 1e-3 of the least error)"""

    name: ClassVar[str] = "flexlora"
    reads_grams: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="FlexLoRA",
        paper="Bai et al. 2024, arXiv:2402.11505",
        exactness="the least error of any adapter of its rank, at every client's rank",
        cost="4R^2(d+k) + 20R^3",
        needs="nothing",
        choose="clients of different ranks that train in every round",
    )

    @property
    def properties(self) -> Properties:
        """Exact before truncation, unless components are averaged over their owners."""
        whole = self.partition is Partition.NONE
        return Properties(
            exact=whole,
            linear=False,
            keeps_basis=False,
            mixed_ranks=True,
            gauge_free=whole,
            strongest_first=True,
            kinds=frozenset(AdapterKind),
        )

    @property
    def compression(self) -> Truncate:
        """Truncation with orthonormal rows in A."""
        return Truncate(gauge=Gauge.ORTHONORMAL_A, core=self.core)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:  # noqa: ARG002
        """T, or T' for owners, as the stack of all products; see `base.Method`."""
        stack = cohort.stack()
        if self.partition is Partition.NONE:
            return Combination(factors=stack)
        owned_R = owners_weight(cohort.members, cohort.weights_U)
        shares = torch.cat([owned_R[: f.rank] for f in cohort.members]).to(stack.b_DR.device)
        return Combination(factors=LoraFactors(stack.a_RK, stack.b_DR / shares))
