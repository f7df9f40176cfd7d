"""Plug-ins that do not go with a run, said before it begins, with both names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.weighting.examples import Uniform
from fedlora.adapters.names import Part
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import Traits
from fedlora.runs.plan import RoundPlan, Selection
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import OptimizerName

__all__ = ["check_plugins"]


def check_plugins(recipe: Recipe, spec: RunSpec) -> None:
    """Refuses a run whose plug-ins ask for what its method, rounds, training or task is not.

    Args:
        recipe: made of the run's method and plug-ins.
        spec: the run's.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD, naming both sides and the way out.
    """
    _check_alone(recipe)
    for plugin in recipe.plugins:
        for find in _CONFLICTS:
            found = find(plugin.traits, recipe, spec)
            if found is not None:
                raise FedLoraError(
                    Reason.UNSUPPORTED_METHOD,
                    f"the plug-in {plugin.name} {found.expects}, {found.got}",
                    hint=f"{found.way_out}, or leave the section [plugins.{plugin.name}] out",
                )


_ALONE: tuple[tuple[Callable[[Traits], bool], str], ...] = (
    (lambda traits: traits.personal, "a worker trains one adapter of its own"),
    (lambda traits: traits.replaces_criterion, "a step has one loss of its targets"),
    (lambda traits: traits.owns_step, "a step has one way to its gradients"),
)
"""what only one plug-in of a run can be, and why"""


def _check_alone(recipe: Recipe) -> None:
    for makes_one, why in _ALONE:
        owners = [plugin.name for plugin in recipe.plugins if makes_one(plugin.traits)]
        if len(owners) > 1:
            raise FedLoraError(
                Reason.UNSUPPORTED_METHOD,
                f"{why}, and the plug-ins {' and '.join(owners)} make one each",
                hint="Leave one of the sections out: "
                f"{', '.join(f'[plugins.{o}]' for o in owners)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conflict:
    """Two things that do not go together."""

    expects: str
    """after the plug-in's name"""
    got: str
    way_out: str


def _factors(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:
    plans = recipe.plans(spec.adapter.kind)
    why = next((reason for plan in plans if (reason := _not_whole(plan))), "")
    # What is kept or sent beside the adapter has the shapes of all of it.
    wanted = traits.whole_factors or traits.personal or traits.kept or traits.has_extras
    if not wanted or not why:
        return None
    return _Conflict(
        expects="is about A and B trained and sent together in every round",
        got=f"and the method {recipe.method.name} {why}",
        way_out="Take a method that trains both factors: fedit, flora_na, optimal",
    )


def _not_whole(plan: RoundPlan) -> str:
    """How a plan departs from A and B trained, sent and published; empty where it does not."""
    if plan.private:
        return "keeps parts with the workers"
    if not {Part.A, Part.B} <= {*plan.trained}:
        return "freezes a factor"
    if plan.selection is not Selection.ALL or plan.may_lower_rank:
        return "lets workers choose components"
    if plan.refined or plan.personal_stage:
        return "trains again after the aggregation"
    return ""


def _private(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:
    if not traits.edits_updates or not any(p.private for p in recipe.plans(spec.adapter.kind)):
        return None
    return _Conflict(
        expects="changes what was trained before it is sent",
        got=f"and the method {recipe.method.name} keeps parts of it with the workers",
        way_out="Take a method without private parts",
    )


def _basis(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    if not traits.factor_state or recipe.properties.keeps_basis:
        return None
    return _Conflict(
        expects="remembers directions of A and B from round to round",
        got=f"and {recipe.method.name} with {recipe.compression.name} publishes other components "
        "every round",
        way_out="Use a method that keeps the clients' basis: fedit, flora_na, lora_fair",
    )


def _engine(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    if not (traits.sync_only and spec.rounds.counts_late_updates):
        return None
    return _Conflict(
        expects="counts on updates that begin from the version of their round",
        got=f"and with rounds.engine = {spec.rounds.engine.value} and late_updates = "
        f"{spec.rounds.late_updates.value} they need not",
        way_out='Set rounds.engine = "sync" and late_updates = "drop"',
    )


def _sgd(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    training = spec.training
    plain = training.optimizer is OptimizerName.SGD and not training.momentum
    if plain or not traits.assumes_sgd:
        return None
    return _Conflict(
        expects="has the formulas of SGD without momentum",
        got=f"and training.optimizer is {training.optimizer.value}, momentum {training.momentum}",
        way_out='Set training.optimizer = "sgd" and training.momentum = 0, or a mode of the '
        "plug-in for any optimiser (decoupled)",
    )


def _weights(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    if not traits.uniform_weights or isinstance(recipe.weighting, Uniform):
        return None
    return _Conflict(
        expects="counts on every update weighing the same",
        got=f"and the weighting is {recipe.weighting.name}",
        way_out='Write name = "uniform" in the section [weighting]',
    )


def _codec(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    if not traits.sent or spec.codec is None:
        return None
    return _Conflict(
        expects=f"sends {', '.join(traits.sent)} beside the update",
        got=f"and the codec {spec.codec.name.value} has no way to write that",
        way_out="Leave the section [codec] out",
    )


def _labels(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    if not (traits.needs_labels and spec.adapter.task_type is TaskType.CAUSAL_LM):
        return None
    return _Conflict(
        expects="is about classes",
        got=f"and model.task is {spec.adapter.task_type.value}",
        way_out='Set model.task = "sequence_classification"',
    )


def _criterion(traits: Traits, recipe: Recipe, spec: RunSpec) -> _Conflict | None:  # noqa: ARG001
    if not (traits.replaces_criterion and spec.training.logit_adjustment):
        return None
    return _Conflict(
        expects="has a loss of its own in place of cross-entropy",
        got=f"and training.logit_adjustment = {spec.training.logit_adjustment:g} is about "
        "cross-entropy",
        way_out="Set training.logit_adjustment = 0",
    )


_CONFLICTS: tuple[Callable[[Traits, Recipe, RunSpec], _Conflict | None], ...] = (
    _factors,
    _private,
    _basis,
    _engine,
    _sgd,
    _weights,
    _codec,
    _labels,
    _criterion,
)
