"""What is told of an aggregation method, in the words of tables and of docs/algorithms.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fedlora.adapters.names import Part
from fedlora.config.keys import Key
from fedlora.runs.options import options

if TYPE_CHECKING:
    from aggregator_service.aggregation.base import (
        CompressionRule,
        Method,
        Properties,
        ServerOptimizer,
    )
    from aggregator_service.aggregation.weighting.base import WeightingRule
    from aggregator_service.rounds.samplers.base import ClientSampler
    from fedlora.plugins import Plugin

    Rule = ClientSampler | CompressionRule | Plugin | ServerOptimizer | WeightingRule

__all__ = [
    "Rule",
    "asked",
    "gauges",
    "lacking",
    "method_rows",
    "plain",
    "promised",
    "rule_rows",
    "runs",
    "saved",
    "traffic",
    "yes_or_no",
]


def method_rows(*, others: bool = True) -> list[Method]:
    """The methods; `others` takes those of other packages in."""
    from aggregator_service.aggregation.registry import METHODS, known_methods

    return list((known_methods() if others else METHODS).values())


def rule_rows(*, others: bool = True) -> Mapping[str, Mapping[str, Rule]]:
    """The rules, samplers and plug-ins by section; `others` as above."""
    from aggregator_service.aggregation import registry
    from aggregator_service.rounds.samplers.registry import SAMPLERS, known_samplers
    from fedlora.plugins import PLUGINS, known_plugins

    if others:
        samplers, plugins = known_samplers(), known_plugins()
        return {**registry.known_rules(), "sampler": samplers, "plugins": plugins}
    return {
        "weighting": registry.WEIGHTINGS,
        "compression": registry.COMPRESSIONS,
        "server_optimizer": registry.SERVER_OPTIMIZERS,
        "sampler": SAMPLERS,
        "plugins": PLUGINS,
    }


def promised(method: Method) -> Properties:
    """What a method with its own rules promises."""
    from aggregator_service.aggregation.composition import compose

    return compose(method).properties


def yes_or_no(value: bool) -> str:
    """A cell of a table."""
    return "yes" if value else "no"


def asked(method: Method) -> str:
    """What its plans ask of workers, round by round."""
    from aggregator_service.aggregation.composition import compose

    plans = compose(method).plans()
    asks = [
        "sends "
        + ", ".join(p.value for p in plan.trained)
        + (f"; keeps {', '.join(p.value for p in plan.private)}" if plan.private else "")
        + (", chosen components" if plan.selection.value != "all" else "")
        + (", may lower its rank" if plan.may_lower_rank else "")
        + (f"; {', '.join(plan.required_metrics)}" if plan.required_metrics else "")
        for plan in plans
    ]
    return " \\| ".join(asks)


def traffic(method: Method) -> tuple[str, str]:
    """Up and down, with the options that make a difference."""
    from aggregator_service.aggregation.traffic import traffic_of

    own = traffic_of(method)
    up, down = [own.up_text], [own.down_text]
    for words, other in _variants(method):
        sent = traffic_of(other)
        if sent.up_text != own.up_text:
            up.append(f"{words}: {sent.up_text}")
        if sent.down_text != own.down_text:
            down.append(f"{words}: {sent.down_text}")
    return "; ".join(up), "; ".join(down)


def _variants(method: Method) -> Iterator[tuple[str, Method]]:
    """The method with another value of one option that is a choice."""
    for option in options(type(method)):
        choices = ("false", "true") if option.type is bool else option.values
        for text in choices:
            value = text == "true" if option.type is bool else option.type(text)
            if value != option.default:
                changes: dict[str, Any] = {option.name: value}
                yield f"{option.name} = {text}", dataclasses.replace(method, **changes)  # type: ignore[type-var]


def lacking(method: Method) -> list[str]:
    """What workers of a run have to be able to do, and the one that comes with fedlora cannot."""
    from aggregator_service.aggregation.composition import compose
    from client_worker.training.features import FEATURES

    wanted = frozenset[str]().union(*(plan.features for plan in compose(method).plans()))
    return sorted(wanted - FEATURES)


def runs(method: Method) -> str:
    """Whether the worker that comes with fedlora can follow its plans."""
    missing = lacking(method)
    return f"no: {', '.join(missing)}" if missing else "yes"


def saved(method: Method) -> str:
    """Which saved adapters `fedlora aggregate` combines with it."""
    from aggregator_service.aggregation.composition import compose
    from aggregator_service.aggregation.run_checks import missing_in_files

    recipe = compose(method)
    if missing := missing_in_files(recipe):
        return f"no: they lack {missing}"
    plan = recipe.plans()[0]
    frozen = {Part.A, Part.B} - {*plan.trained, *plan.private}
    if frozen:
        return f"those of one lora_{min(frozen).value.upper()}"
    return "with --start" if recipe.properties.needs_start else "yes"


def gauges(method: Method) -> list[str]:
    """The gauges in which it can publish."""
    from aggregator_service.aggregation.composition import gauges_of

    return [gauge.value for gauge in gauges_of(method)]


def plain(key: Key) -> str:
    """An option's default."""
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)
