"""LoRA-A2: one factor at a time, and of it the components that matter to the worker.

Paper   Koo, Jang, Ok, "Towards Robust and Efficient Federated Low-Rank Adaptation with
        Heterogeneous Clients", ACL 2025, arXiv:2410.22815.
Rule    odd rounds train B with A frozen, even rounds A with B frozen; of the global rank each
        worker sends the components that matter most to it over all layers, within an upload budget;
        component j = sum_{u in S_j} w_u x_uj / sum_{u in S_j} w_u over its senders S_j; a component
        that nobody sent stays.
Bias    none in a component that all send. Where some do not, it is the mean of those who do: that
        moves it further than T, in which the others count as unchanged.
Needs   workers that freeze a factor and choose components; one global rank, of which a worker
        with little room chooses less.
Cost    2 R D or 2 R K flops per module, R = sum of ranks.

Readings. The paper's importance score is not known to us, and is the worker's affair: the server is
told which components came. B comes first here, since B is zero in PEFT's start and with it the
gradient of A; in the paper's words A is frozen in even rounds. T of the certificate takes a
component that a worker did not send as unchanged, which is what happened on its side
(test_lora_a2.py holds these).

Shape suffixes: R rank, K in_features, D out_features.
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
from aggregator_service.aggregation.common_factor import common_factor
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.draws import Side
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan, Selection, plan_for

__all__ = ["LoRAA2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAA2(MethodDefaults):
    """Means over senders, one factor at a time."""

    upload_budget: float = 0.5
    """share of a worker's components, over all layers, that it sends"""

    name: ClassVar[str] = "lora_a2"
    about: ClassVar[About] = About(
        title="LoRA-A2",
        paper="Koo et al. 2025, arXiv:2410.22815",
        exactness="exact in components that all send, one factor per round",
        up="d or k per component chosen",
        down="rd or rk",
        cost="2Rd or 2Rk",
        needs="workers that freeze a factor and choose components",
        choose="very little traffic, and workers for whom different components matter",
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
                f"lora_a2: expected upload_budget in (0, 1], got {self.upload_budget}",
            )

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """Components of B first, then of A, and so on."""
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
        """The mean of each component over its senders; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        trains_b = Part.B in plan_for(self.plans, cohort.round).trained
        frozen = common_factor(self.name, cohort, Side.A if trains_b else Side.B)
        rows = [(f.b_DR.T if trains_b else f.a_RK).to(torch.float64) for f in cohort.members]
        total, weight_R = torch.zeros_like(rows[0]), rows[0].new_zeros(len(rows[0]))
        for x, extras, w in zip(rows, cohort.extras, cohort.weights_U.tolist(), strict=True):
            share_R = w * extras.get(Part.SELECTED, torch.ones(len(x))).to(total)
            total.add_(share_R[:, None] * x)
            weight_R.add_(share_R)
        sent = (weight_R > 0)[:, None]
        # What nobody chose is completed in every update by what they were given.
        mean = torch.where(sent, total / torch.where(sent, weight_R[:, None], 1.0), rows[0])
        factors = LoraFactors(frozen, mean.T) if trains_b else LoraFactors(mean, frozen)
        return Combination(
            factors=factors, measurements={"unsent_components": float((~sent).sum())}
        )
