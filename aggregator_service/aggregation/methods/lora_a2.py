"""LoRA-A2: train B and A in turn, and send only the components that matter.

Paper   Koo, Jang, Ok, "Towards Robust and Efficient Federated Low-Rank Adaptation with
        Heterogeneous Clients", ACL 2025, arXiv:2410.22815.
Rule    odd rounds train B and freeze A, even rounds the reverse. Worker u sends the set S_u of
        components that it finds important, under an upload budget. For each component j
            b_j = sum_{u: j in S_u} w_u b_u,j / sum_{u: j in S_u} w_u,
        likewise a_j; a component that nobody sent stays as it was.
Bias    none per component: the other factor is frozen and common, so the mean of products
        b_u,j a_j over the senders of j is b_j a_j. It is T itself where everybody sends everything;
        otherwise a component moves as far as its senders want, where T, and the certificate,
        count the others as wanting it to stay.
Needs   one rank for the whole cohort (the budget stands in for the rank); workers that freeze a
        factor and send chosen components; the adapter that the round began from, unless
        every component was sent.
Cost    2 R max(D, K) flops per module, R = U r.

Readings. The paper is known to us by its abstract and summaries. It counts rounds from 0 and
freezes A in the even ones: B is first here too, as it must be, since A has no gradient while B is
zero. The importance by which a worker chooses is not known to us and is the worker's; the budget
is a share of the components over all its layers. Different learning rates for A and B, as in the
paper, are no matter of the server's. test_lora_a2.py holds the means and what stays.

Shape suffixes: U clients, R rank, N long side of the trained factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.common_factor import common_factor
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import weighted_sum
from fedlora.runs.plan import RoundPlan, Selection, plan_for

__all__ = ["LoRAA2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAA2(MethodDefaults):
    """B and A in turn; each component averaged over its senders."""

    upload_budget: float = 0.5
    """share of all components that a worker sends, above 0, at most 1"""

    name: ClassVar[str] = "lora_a2"
    about: ClassVar[About] = About(
        title="LoRA-A2",
        paper="Koo et al. 2025, arXiv:2410.22815",
        exactness="exact per component over its senders; for all where everybody sends everything",
        cost="2R max(d,k)",
        needs="one rank for the cohort; workers that freeze a factor and choose components; where "
        "a round began (--start outside a run), unless every component was sent",
        choose="very little upload, clients with different data",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        if not 0 < self.upload_budget <= 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "lora_a2: expected an upload_budget above 0 and at most 1, got "
                f"{self.upload_budget}",
            )

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """Chosen components of B, then of A."""
        return tuple(
            RoundPlan(
                trained=(part,),
                published=(part,),
                selection=Selection.REST_UNCHANGED,
                settings={"upload_budget": self.upload_budget},
            )
            for part in (Part.B, Part.A)
        )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """Means over the senders of each component; see `base.Method`.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD for a component that nobody sent where the start of
                the round is not known, and as `common_factor`.
        """
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        trains_b = Part.B in plan_for(self.plans, cohort.round).trained
        frozen = common_factor(self.name, cohort, Side.A if trains_b else Side.B)
        shares = _shares(cohort)
        counted = [
            share_R[:, None] * _rows(f, trains_b)
            for f, share_R in zip(cohort.members, shares, strict=True)
        ]
        rows_RN = torch.stack(counted).sum(dim=0)
        untouched_R = _untouched(shares)
        if untouched_R.any():
            rows_RN = torch.where(untouched_R[:, None], _held(cohort, trains_b), rows_RN)
        factors = LoraFactors(frozen, rows_RN.T) if trains_b else LoraFactors(rows_RN, frozen)
        return Combination(
            factors=factors, measurements={"untouched_components": float(untouched_R.sum())}
        )


def _shares(cohort: ModuleCohort) -> list[Tensor]:
    """What each member counts for in each component, R: shares of its senders, or all zero."""
    device = cohort.members[0].a_RK.device
    masks = [
        extras[Part.SELECTED].to(device, torch.float64)
        if Part.SELECTED in extras
        else torch.ones(f.rank, dtype=torch.float64, device=device)
        for f, extras in zip(cohort.members, cohort.extras, strict=True)
    ]
    total_R = weighted_sum(masks, cohort.weights_U)
    divisor_R = torch.where(total_R > 0, total_R, 1.0)
    return [
        w * mask_R / divisor_R for w, mask_R in zip(cohort.weights_U.tolist(), masks, strict=True)
    ]


def _untouched(shares: Sequence[Tensor]) -> Tensor:
    """Which components nobody sent, R."""
    return torch.stack(list(shares)).sum(dim=0) == 0


def _rows(factors: LoraFactors, trains_b: bool) -> Tensor:
    """The trained factor with one row per component, float64."""
    return (factors.b_DR.T if trains_b else factors.a_RK).to(torch.float64)


def _held(cohort: ModuleCohort, trains_b: bool) -> Tensor:
    """The trained factor where the round began."""
    if cohort.start is None:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            "lora_a2 keeps a component that nobody sent as it was, and the adapter that the round "
            "began from is not known",
            hint="Name the version that the updates were trained from",
        )
    return _rows(cohort.start.factors, trains_b)[: cohort.largest_rank]
