"""The way back: the keys and values of a configuration that describes a given run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.config.load import ConfigEntry
from fedlora.config.sections import (
    METHOD_RULES,
    PLUGIN_SECTIONS,
    SAMPLER,
    SWITCH,
    Section,
    run_sections,
)
from fedlora.config.sources import Origin, OriginKind
from fedlora.runs.method import RuleSpec
from fedlora.runs.spec import RunSpec

__all__ = ["run_entries"]


def run_entries(spec: RunSpec) -> tuple[ConfigEntry, ...]:
    """Every value of the sections that define the run, in the order of the reference."""
    rules = {name: getattr(spec.method, name) for name in METHOD_RULES}
    rules[SAMPLER] = spec.rounds.sampler
    plugins = {f"{PLUGIN_SECTIONS}.{rule.name}": rule for rule in spec.plugins}
    holders: Mapping[str, tuple[Any, ...]] = {
        "run": (spec,),
        "model": (spec.adapter.base_model, spec.adapter),
        "adapter": (spec.adapter,),
        "method": (spec.method,),
        "rounds": (spec.rounds,),
        "training": (spec.training,),
        "codec": (spec.codec,) if spec.codec else (),
        "data.partition": (spec.partition,) if spec.partition else (),
        "continual": (spec.continual,) if spec.continual else (),
        **{name: (rule,) if rule else () for name, rule in rules.items()},
    }
    entries = []
    for section in run_sections():
        if section.path[0] == PLUGIN_SECTIONS:
            entries += _plugin_entries(section, plugins.get(section.name))
            continue
        for key in section.keys:
            for holder in holders[section.name]:
                if hasattr(holder, key.attribute):
                    value = getattr(holder, key.attribute)
                    entries.append(_entry(section.name, key.name, value, key.help))
                    break
        open_to = spec.method if section.name == "method" else rules.get(section.name)
        if open_to is not None:
            entries += [_entry(section.name, k, v) for k, v in sorted(open_to.options.items())]
    return tuple(entries)


def _plugin_entries(section: Section, rule: RuleSpec | None) -> list[ConfigEntry]:
    if rule is None:
        return []
    given = {SWITCH.name: True, **rule.options}
    return [
        _entry(section.name, k.name, given.get(k.name, k.default), k.help) for k in section.keys
    ]


def _entry(section: str, key: str, value: object, help: str = "") -> ConfigEntry:  # noqa: A002
    return ConfigEntry(
        section=section, key=key, value=value, origin=Origin(OriginKind.DEFAULT), help=help
    )
