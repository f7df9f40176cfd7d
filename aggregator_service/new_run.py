"""What a server asks of a run before it takes it; command lines ask the same beforehand."""

from __future__ import annotations

from aggregator_service.aggregation import registry
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.run_checks import check_run
from aggregator_service.rounds.samplers.registry import create_sampler
from fedlora.runs.spec import RunSpec
from fedlora.runs.task_checks import check_task

__all__ = ["checked_recipe"]


def checked_recipe(spec: RunSpec, *, has_base_weights: bool) -> Recipe:
    """The recipe of a run that a server can take.

    Args:
        spec: the run.
        has_base_weights: whether the server can read the frozen weights (server.base_weights).

    Raises:
        FedLoraError: UNSUPPORTED_METHOD or INVALID_ARGUMENT for a method, rule, option, plug-in,
            sampler or adapter kind that cannot be run, alone or together; INVALID_CONFIG for a
            package of one that cannot be loaded, and for labels or training of another task.
    """
    check_task(spec)
    recipe = registry.create_recipe(spec.method, spec.plugins)
    check_run(recipe, spec, has_base_weights=has_base_weights)
    create_sampler(spec.rounds)
    return recipe
