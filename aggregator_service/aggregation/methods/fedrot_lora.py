"""FedRot-LoRA: turn every client's basis towards one reference before averaging the factors.

Paper   "FedRot-LoRA", orthogonal alignment before federated averaging of LoRA; we have it at second
        hand.
Rule    O_u = X Y^T with X S Y^T = A_u A_o^T + B_u^T B_o the singular value decomposition;
        A = sum_u w_u O_u^T A_u,  B = sum_u w_u B_u O_u.
Bias    the factor mean's, after as much of it as a rotation can take away: (B_u O, O^T A_u) is the
        same product for every orthogonal O, and O_u is the one nearest to the reference (A_o, B_o)
        in |O^T A_u - A_o|^2 + |B_u O - B_o|^2 (orthogonal Procrustes problem).
Needs   one rank for the whole cohort.
Cost    6 R r (D + K) + O(U r^3) flops per module, R = U r.

Readings. The reference is what the round began from, and the first client where that is not known
or still nothing: B_o = 0 leaves A alone to align by, as in the first round of PEFT's start, where
all begin with one A. Clients that have stayed in the common basis are turned as well, by what noise
there is: for ordinary drift nothing is gained (test_fedrot_lora.py holds these).

Shape suffixes: U clients, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import (
    About,
    Combination,
    MethodDefaults,
    ModuleCohort,
    Properties,
    Work,
    uniform_rank,
)
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind

__all__ = ["FedRotLoRA", "aligned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedRotLoRA(MethodDefaults):
    """Factor mean of aligned clients."""

    name: ClassVar[str] = "fedrot_lora"
    about: ClassVar[About] = About(
        title="FedRot-LoRA",
        paper="FedRot-LoRA, at second hand",
        exactness="wrong by the covariance of the factors after alignment",
        up="r(d+k)",
        down="r(d+k)",
        cost="6Rr(d+k)",
        needs="one rank for the cohort",
        choose="clients' bases have turned against each other",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=False,
        keeps_basis=True,
        mixed_ranks=False,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The means of the turned factors; see `base.Method`."""
        rank = uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        start = cohort.start.factors if cohort.start else None
        known = start is not None and start.rank == rank
        reference = (start if start is not None and known else cohort.members[0]).to(torch.float64)
        turned = [aligned(f.to(torch.float64), reference) for f in cohort.members]
        mean = factor_mean(turned, cohort.weights_U)
        moved = [
            float(w) * float((new.a_RK - old.a_RK).norm() / old.a_RK.norm().clamp(min=1e-300))
            for w, new, old in zip(cohort.weights_U, turned, cohort.members, strict=True)
        ]
        return Combination(factors=mean, measurements={"turned": sum(moved)})


def aligned(factors: LoraFactors, reference: LoraFactors) -> LoraFactors:
    """The same product in the basis nearest to the reference's."""
    u, _, vh = torch.linalg.svd(factors.a_RK @ reference.a_RK.T + factors.b_DR.T @ reference.b_DR)
    turn_RR = u @ vh
    return LoraFactors(turn_RR.T @ factors.a_RK, factors.b_DR @ turn_RR)
