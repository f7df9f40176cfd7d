"""Fed-TaLoRA: one adapter across a stream of tasks, averaged with FedEx-LoRA's residual.

Paper   Yu, Hu, Min, "Efficient Federated Class-Incremental Learning of Pre-Trained Models via
        Task-agnostic Low-rank Residual Adaptation", 2025, arXiv:2505.12318.
Rule    A = sum_u w_u A_u,  B = sum_u w_u B_u,  base <- base + (sum_u w_u B_u A_u - B A), every
        round and across the borders of tasks.
Bias    none.
Needs   one rank for the whole cohort; workers that add a low-rank change to their frozen
        weights.
Cost    as FedEx-LoRA.

Readings. The formula is FedEx-LoRA's; what is new is the setting: classes arrive over time, and
the adapter and its residual are kept when they do, with no part that belongs to a task. For the
server that means doing nothing at the border of a task: no reset, no new stack
(test_fed_talora.py: round after round as `fedex_lora`, bit for bit). The head is not the
method's: it is a module trained in full, and its tensors are averaged with the weights of the
round. A run's section [continual] does the rest: workers leave the rows of classes that are not
there alone, and updates weigh by the examples of those that are (`fedlora.runs.continual`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About
from aggregator_service.aggregation.methods.fedex_lora import FedExLoRA

__all__ = ["FedTaLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedTaLoRA(FedExLoRA):
    """Factor mean with its residual, whatever the task."""

    name: ClassVar[str] = "fed_talora"
    about: ClassVar[About] = About(
        title="Fed-TaLoRA",
        paper="Yu et al. 2025, arXiv:2505.12318",
        exactness="exact",
        base_rank="t(U-1)r",
        cost="4R^2(d+k) + 20R^3",
        needs="one rank for the cohort; workers that change their frozen weights",
        choose="classes arrive over time, and one adapter serves them all",
    )
