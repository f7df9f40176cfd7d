"""All client samplers, in one table, and how a run's configuration becomes one of them."""

from __future__ import annotations

from collections.abc import Mapping

from aggregator_service.rounds.samplers.base import ClientSampler
from aggregator_service.rounds.samplers.by_examples import ByExamples
from aggregator_service.rounds.samplers.power_of_choice import PowerOfChoice
from aggregator_service.rounds.samplers.uniform import Uniform
from fedlora.runs.installed import SAMPLERS_GROUP
from fedlora.runs.rounds import RoundRules
from fedlora.runs.tables import Table, by_name

__all__ = ["SAMPLERS", "create_sampler", "known_samplers"]

SAMPLERS: Mapping[str, ClientSampler] = by_name((Uniform(), ByExamples(), PowerOfChoice()))
"""Those that come with fedlora, by name, each with its options' defaults."""

_TABLE = Table(kind="client sampler", group=SAMPLERS_GROUP, rows=SAMPLERS, does="select")


def known_samplers() -> Mapping[str, ClientSampler]:
    """Those, and the ones of other packages that are installed here; a name of ours is ours."""
    return _TABLE.known()


def create_sampler(rules: RoundRules) -> ClientSampler:
    """The sampler that a run's rules name, with its options.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that nobody has, INVALID_CONFIG for a package
            that cannot be loaded, INVALID_ARGUMENT for an option or a value.
    """
    rule = rules.client_sampler
    return _TABLE.create(rule.name, rule.options)
