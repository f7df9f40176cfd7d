"""FedRot-LoRA: turn every client's factors towards a reference before averaging them.

Paper   Zhang, Kim, Cha, Vikalo, "FedRot-LoRA: Mitigating Rotational Misalignment in Federated
        LoRA", 2026, arXiv:2602.23638.
Rule    A = sum_u w_u O_u^T A_u,  B = sum_u w_u B_u O_u,  with O_u orthogonal, nearest to a
        reference: the minimum of t^2 |O^T A_u - A_0|^2 + |B_u O - B_0|^2 / t^2, which is
            O_u = X Y^T,  X S Y^T = t^2 A_u A_0^T + B_u^T B_0 / t^2.
Bias    as FedIT, of the turned factors: (B_u O_u)(O_u^T A_u) is the client's own product, and only
        the covariance of the factors, which the mean loses, becomes smaller. Exact where clients
        differ by rotations alone.
Needs   one rank for the whole cohort. It cannot undo gauges that are not orthogonal, as scales.
Cost    2 R (D + K) flops for the means, 4 R r (D + K) for the alignment and 20 R r^2 for the
        decompositions, R = U r. No traffic.

Readings. The paper is known to us by its abstract and summaries. They name an alignment strength
that we do not have: here clients are turned all the way. The reference (A_0, B_0) is what the round
began from; where that is not known, the member of largest weight, and of equal ones the longest.
t balances the reference, t |A_0| = |B_0| / t, so that both factors have a say; it is 1 where B_0 is
zero, as in a first round, and then A alone decides. Components that the reference does not
determine are turned as little as possible.
These choices are ours (test_fedrot_lora.py).

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind

__all__ = ["FedRotLoRA", "rotation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedRotLoRA(MethodDefaults):
    """Factor-wise mean after an orthogonal alignment."""

    name: ClassVar[str] = "fedrot_lora"
    about: ClassVar[About] = About(
        title="FedRot-LoRA",
        paper="Zhang et al. 2026, arXiv:2602.23638",
        exactness="wrong by the covariance of the aligned factors",
        cost="4Rr(d+k) + 20Rr^2",
        needs="one rank for the cohort",
        choose="clients whose factors have turned away from each other",
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
        reference = _reference(cohort)
        turned, largest = [], 0.0
        for member in cohort.members:
            wide = member.to(torch.float64)
            o_RR = rotation(wide, reference)
            turned.append(LoraFactors(o_RR.T @ wide.a_RK, wide.b_DR @ o_RR))
            o_RR.diagonal().sub_(1.0)
            largest = max(largest, float(torch.linalg.matrix_norm(o_RR)))
        return Combination(
            factors=factor_mean(turned, cohort.weights_U),
            # |O - I| is at most 2 sqrt(r), for O = -I.
            measurements={"largest_rotation": largest / (2 * math.sqrt(rank))},
        )


def rotation(member: LoraFactors, reference: LoraFactors) -> Tensor:
    """O, R x R and orthogonal, with (B O, O^T A) nearest to the reference; both float64.

    Where several do, the one among them that is nearest to the identity.
    """
    a_norm = float(torch.linalg.matrix_norm(reference.a_RK))
    b_norm = float(torch.linalg.matrix_norm(reference.b_DR))
    squared = b_norm / a_norm if a_norm > 0 and b_norm > 0 else 1.0
    n_RR = squared * (member.a_RK @ reference.a_RK.T)
    n_RR += (member.b_DR.T @ reference.b_DR) / squared
    x_RR, values_R, yh_RR = torch.linalg.svd(n_RR)
    eps = torch.finfo(torch.float64).eps
    known = int((values_R > len(values_R) * eps * values_R[0]).sum())
    free_x, free_y = x_RR[:, known:], yh_RR[known:].T
    left, _, right = torch.linalg.svd(free_x.T @ free_y)
    o_RR: Tensor = x_RR[:, :known] @ yh_RR[:known] + free_x @ (left @ right) @ free_y.T
    return o_RR


def _reference(cohort: ModuleCohort) -> LoraFactors:
    """What the clients are turned towards, at their rank."""
    if (start := cohort.start_at_rank) is not None:
        return start.to(torch.float64)

    def prominence(u: int) -> tuple[float, float]:
        f = cohort.members[u]
        length = f.a_RK.square().sum() + f.b_DR.square().sum()
        return float(cohort.weights_U[u]), float(length)

    return cohort.members[max(range(len(cohort.members)), key=prominence)].to(torch.float64)
