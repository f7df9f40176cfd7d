"""What a recipe cannot do, said before a run begins and not in its last round."""

from __future__ import annotations

from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.plugin_checks import check_plugins
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan, Selection
from fedlora.runs.spec import RunSpec

__all__ = ["check_kind", "check_run", "check_saved", "missing_in_files", "needs_one_version"]


def check_kind(recipe: Recipe, kind: AdapterKind, *, has_base_weights: bool) -> None:
    """Refuses adapters of a family that the recipe cannot combine.

    Args:
        recipe: what is to combine them.
        kind: their family.
        has_base_weights: whether the frozen weights can be read.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD, naming what was expected and got.
    """
    name, reads = recipe.method.name, recipe.method.reads_base
    if kind not in recipe.properties.kinds:
        known = ", ".join(sorted(recipe.properties.kinds))
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} combines adapters of kind {known}, got {kind.value}",
            hint="Take adapters of another kind, or another method: fedit, flora_na and optimal "
            "combine all",
        )
    if reads and kind not in reads:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the options of {name} are for adapters of kind {', '.join(sorted(reads))}, "
            f"got {kind.value}",
            hint="hadamard = weighted is for hira, magnitudes = least_squares for dora",
        )
    if reads and not has_base_weights:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} with these options reads the frozen weights of the base model, and there are "
            "none",
            hint="Set server.base_weights (--base-weights) to its safetensors files",
        )


def missing_in_files(recipe: Recipe) -> str:
    """What the recipe combines that no saved adapter has; empty for nothing."""
    plan = recipe.plans()[0]
    if plan.required_metrics:
        return f"the metrics {', '.join(plan.required_metrics)}"
    return "a core" if Part.CORE in plan.trained else ""


def check_saved(recipe: Recipe, *, count: int, has_start: bool) -> None:
    """Refuses what cannot combine adapters that were saved, outside any run.

    Args:
        recipe: what is to combine them.
        count: how many there are.
        has_start: whether it is known which adapter they were trained from.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD, naming what they lack.
    """
    name = recipe.method.name
    if missing := missing_in_files(recipe):
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} with {recipe.weighting.name} weights needs {missing} with every update, and "
            "saved adapters come without",
            hint=f"In a run {name} gets it from the workers. Here: fedit with --weights, optimal "
            "or flora_na",
        )
    if count < recipe.properties.min_clients:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} needs at least {recipe.properties.min_clients} adapters, got {count}",
            hint="Name more folders, or use fedit, optimal or flora_na",
        )
    if recipe.properties.needs_start and not has_start:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} with {recipe.compression.name} needs the adapter that training began from",
            hint="Name it with --start, or use fedit or fedex_lora",
        )


def check_run(recipe: Recipe, spec: RunSpec, *, has_base_weights: bool) -> None:
    """Refuses a run whose adapter or rounds do not go with its recipe.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD, naming what was expected and got.
    """
    name = recipe.method.name
    check_kind(recipe, spec.adapter.kind, has_base_weights=has_base_weights)
    check_plugins(recipe, spec)
    if recipe.compression.name == Keep.name != recipe.method.compression.name and (
        recipe.method.properties.gauge_free
    ):
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the compression rule keep publishes a combination as it is, and that of {name} is "
            "the workers' products side by side, of a higher rank than the run's",
            hint="Leave the section [compression] out, or take truncate, energy, residual or merge",
        )
    if spec.rounds.quorum < recipe.properties.min_clients:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} needs updates of at least {recipe.properties.min_clients} workers, and "
            f"rounds.quorum is {spec.rounds.quorum}",
            hint=f"Set rounds.quorum = {recipe.properties.min_clients}",
        )
    if spec.codec is not None and (part := _uncodable(recipe.plans(spec.adapter.kind))):
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} cannot take updates in a codec, here {spec.codec.name.value}: a codec writes "
            f"the change of the adapter that was given, and its workers send {part}",
            hint="Leave the section [codec] out, or take another method: fedit, flora_na and "
            "optimal take every codec",
        )
    why = needs_one_version(recipe, spec.adapter.kind) if spec.rounds.counts_late_updates else ""
    if why:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the updates of a round of {name} must all begin from one version, since {why}; with "
            f"engine = {spec.rounds.engine.value} and late_updates = "
            f"{spec.rounds.late_updates.value} they need not",
            hint='Set rounds.engine = "sync" and late_updates = "drop", or take another method: '
            "fedit, flora_na and optimal combine late updates",
        )
    if spec.continual is not None and (why := _needs_examples(recipe, spec.adapter.kind)):
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            "in a run with a section [continual] a worker may have nothing to train on in a "
            f"round, and {why}",
            hint="Take another method, weighting or plug-in: fed_talora, fedit, flora_na and "
            "optimal need no such thing",
        )
    personal = any(plan.personal_stage for plan in recipe.plans(spec.adapter.kind))
    scored = personal or any(plugin.traits.personal for plugin in recipe.plugins)
    if spec.rounds.best_by.startswith("personal_") and not scored:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"rounds.best_by is {spec.rounds.best_by!r}, and workers of {name} with these options "
            "have no personal score",
            hint="Judge by a score of the published adapter, test_ or held_out_, or add the "
            "plug-in ditto",
        )
    if personal and not spec.rounds.evaluate:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} makes published adapters personal when they are scored, and rounds.evaluate "
            "is false",
            hint="Set rounds.evaluate = true, or method.personal_epochs = 0",
        )


def needs_one_version(recipe: Recipe, kind: AdapterKind) -> str:
    """Why a recipe's updates must all begin from one version; empty where they need not."""
    plans = recipe.plans(kind)
    if len(plans) > 1:
        return "its rounds ask for different parts in turn"
    if not isinstance(recipe.weighting, NumExamples):
        return f"its weights ({recipe.weighting.name}) compare updates of one version"
    properties = recipe.properties
    if properties.changes_base or properties.keeps_total:
        return "it adds rounds up in the base model or in a state of its own"
    if reason := _of_plan(plans[0]):
        return reason
    if not (properties.keeps_basis or properties.gauge_free):
        return "its versions come in other components each, and it combines updates by component"
    return ""


def _needs_examples(recipe: Recipe, kind: AdapterKind) -> str:
    """What every worker must have examples for in every round; empty for nothing."""
    plans = recipe.plans(kind)
    if metrics := sorted({name for plan in plans for name in plan.required_metrics}):
        return f"{recipe.method.name} as configured needs {', '.join(metrics)} with every update"
    if any(plan.personal_stage for plan in plans):
        return f"{recipe.method.name} has every worker train magnitudes of its own"
    for plugin in recipe.plugins:
        if plugin.traits.kept or plugin.traits.has_extras or plugin.traits.personal:
            return f"the plug-in {plugin.name} goes by what every worker has trained"
    return ""


def _uncodable(plans: tuple[RoundPlan, ...]) -> str:
    """What keeps updates from being a change of every number that was given; empty for nothing."""
    if any(plan.selection is not Selection.ALL for plan in plans):
        return "components of their choice, with an exact mask"
    if any(plan.may_lower_rank for plan in plans):
        return "an adapter of a rank of their choice"
    return ""


def _of_plan(plan: RoundPlan) -> str:
    if plan.private:
        return "workers keep parts that go with a version"
    if plan.selection is not Selection.ALL or plan.may_lower_rank:
        return "workers send components of the version that they were given"
    if plan.refined or plan.personal_stage:
        return "its rounds have a stage after the aggregation"
    if not {*plan.trained} <= {Part.A, Part.B, Part.MAGNITUDE}:
        return "workers train a matrix between the factors of one version"
    if not {*plan.published} <= {*plan.trained}:
        return "it publishes factors that workers have not trained"
    return ""
