"""What one stretch of training moves, and how: decided by a plan, and by nothing else.

    a round          the parts that are trained or private, and the modules trained in full; where
                     the plan asks for directions alone, what the refinement trains
    the refinement   by a worker with the server's data, after a round: the parts that are trained;
                     of an axis, their directions alone
    personal         of the published adapter, by each worker for itself: B's magnitudes

Settings of a plan that are not named leave a stage at what the run trains with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedlora.adapters.axis import Axis
from fedlora.adapters.names import Part
from fedlora.runs.plan import RoundPlan
from fedlora.runs.training import LearningRateSchedule, TrainingSpec

__all__ = ["Stage", "personal_axis", "personal_stage", "refinement", "round_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of training."""

    training: TrainingSpec
    parts: frozenset[Part]
    """what is moved"""
    full_modules: bool = False
    """whether the modules trained in full are moved as well"""
    directions: Axis | None = None
    """of what is moved only the directions are, at their lengths"""


def round_stage(training: TrainingSpec, plan: RoundPlan) -> Stage:
    """A round's own training."""
    if plan.settings.get("directions_alone"):
        stage = refinement(training, plan)
        return replace(stage, parts=stage.parts & {Part.A, Part.B})
    return Stage(
        training=training, parts=frozenset({*plan.trained, *plan.private}), full_modules=True
    )


def refinement(training: TrainingSpec, plan: RoundPlan) -> Stage:
    """`refine_steps` at `refine_learning_rate`."""
    settings = plan.settings
    axis = settings.get("axis")
    return Stage(
        training=replace(
            _even(training),
            local_steps=int(settings.get("refine_steps", training.local_steps)),
            learning_rate=settings.get("refine_learning_rate", training.learning_rate),
        ),
        parts=frozenset(plan.trained),
        directions=None if axis is None else Axis.of(axis),
    )


def personal_stage(training: TrainingSpec, plan: RoundPlan) -> Stage:
    """`personal_epochs` at `personal_learning_rate`."""
    settings = plan.settings
    return Stage(
        training=replace(
            _even(training),
            local_steps=0,
            local_epochs=settings.get("personal_epochs", training.local_epochs),
            learning_rate=settings.get("personal_learning_rate", training.learning_rate),
        ),
        parts=frozenset({Part.B}),
    )


def personal_axis(plan: RoundPlan) -> Axis:
    """To which vectors of B the personal magnitudes belong: the plan's, else components."""
    return Axis.of(plan.settings.get("axis", Axis.RANK.code))


def _even(training: TrainingSpec) -> TrainingSpec:
    """With one rate over all rounds and factors: the rate of a stage is its own."""
    return replace(training, schedule=LearningRateSchedule.CONSTANT, b_learning_rate_ratio=1.0)
