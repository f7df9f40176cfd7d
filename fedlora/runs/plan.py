"""What a round asks of a worker: which tensors it trains, sends, keeps and is given.

A method changes more than the server. FFA-LoRA freezes A; FedSA-LoRA keeps B with the worker; FLoRA
adds every round's result to the base model. Each method says so with values of these types
(`RoundPlan`, one per round of its cycle), the server checks every update against them, and a worker
trains by them; no worker knows a method by name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason

__all__ = ["RoundPlan", "Selection", "WorkerFeature", "plan_for"]


class Selection(enum.StrEnum):
    """Whether an update holds all components, and what the absent ones are."""

    ALL = "all"
    """every component is there"""
    REST_UNCHANGED = "rest_unchanged"
    """the worker chose; an absent component is as the worker was given it"""
    REST_ZERO = "rest_zero"
    """the worker chose; an absent component adds nothing"""


class WorkerFeature(enum.StrEnum):
    """What a worker must be able to do beyond training A and B from what it was given."""

    PARTIAL_TRAINING = "partial_training"
    """train some parts and leave others as they are"""
    PRIVATE_PARTS = "private_parts"
    """keep a part from round to round, without ever sending it"""
    BASE_CHANGES = "base_changes"
    """add a low-rank change to the frozen weights"""
    COMPONENT_SELECTION = "component_selection"
    """send chosen components, with a mask"""
    RANK_PRUNING = "rank_pruning"
    """lower its own rank between rounds"""
    CORE_MATRIX = "core_matrix"
    """train a square matrix between fixed B and A"""
    PERSONAL_STAGE = "personal_stage"
    """train private magnitudes after a round"""
    ROUND_METRICS = "round_metrics"
    """measure what `required_metrics` names, and send it with every update"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """One round, seen from a worker. What is neither trained nor private is frozen."""

    trained: tuple[Part, ...] = (Part.A, Part.B)
    """parts that are trained and sent"""
    private: tuple[Part, ...] = ()
    """parts that are trained and kept by the worker, from round to round; never sent"""
    published: tuple[Part, ...] = (Part.A, Part.B)
    """parts of the global adapter that the round may change; the others stay bit for bit"""
    selection: Selection = Selection.ALL
    """whether the worker sends all components"""
    may_lower_rank: bool = False
    """a worker may come back with a lower rank than it was given, and keeps it"""
    personal_stage: bool = False
    """after the round each worker trains private magnitudes of B, which are never sent"""
    personal_unrefined: bool = False
    """it begins from what the round came to before the stage on the server's data"""
    refined: tuple[Part, ...] = ()
    """parts that a worker with the role `server_data` trains after the round, if there is one"""
    required_metrics: tuple[str, ...] = ()
    """metrics that an update must come with"""
    settings: Mapping[str, float] = field(default_factory=dict)
    """numbers of the method that the worker's training needs, such as `tail_penalty`"""
    keeps_basis: bool = True
    """the components of the next version are those of this one, so that what a codec took from an
    update can be added to the worker's next one"""
    sent_extras: tuple[str, ...] = ()
    """plug-ins' tensors that an update comes with: under each name a copy of all it holds"""
    given_extras: tuple[str, ...] = ()
    """plug-ins' tensors that a version comes with, likewise; the first one without"""

    def __post_init__(self) -> None:
        if not self.trained:
            raise FedLoraError(Reason.INVALID_ARGUMENT, "a round plan needs parts to train")
        if both := set(self.trained) & set(self.private):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, f"parts {sorted(both)} are both sent and private"
            )

    @property
    def changes_base(self) -> bool:
        """Whether the round may change what is added to the base model."""
        return Part.BASE_A in self.published

    @property
    def features(self) -> frozenset[WorkerFeature]:
        """What a worker must be able to do to follow the plan."""
        wanted = {
            WorkerFeature.PARTIAL_TRAINING: not {Part.A, Part.B} <= {*self.trained, *self.private},
            WorkerFeature.PRIVATE_PARTS: bool(self.private),
            WorkerFeature.BASE_CHANGES: self.changes_base,
            WorkerFeature.COMPONENT_SELECTION: self.selection is not Selection.ALL,
            WorkerFeature.RANK_PRUNING: self.may_lower_rank,
            WorkerFeature.CORE_MATRIX: Part.CORE in self.trained,
            WorkerFeature.PERSONAL_STAGE: self.personal_stage,
            WorkerFeature.ROUND_METRICS: bool(self.required_metrics),
        }
        return frozenset(feature for feature, needed in wanted.items() if needed)


def plan_for(plans: tuple[RoundPlan, ...], round: int) -> RoundPlan:
    """The plan of a round, from 1; plans repeat in a cycle."""
    return plans[(round - 1) % len(plans)]
