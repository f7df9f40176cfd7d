"""The sections of a configuration file: which keys each has, and which dataclass gets the values.

Thirteen sections define a run and belong to `fedlora.runs`. The others belong to a service or to
the command line; their dataclasses come from whoever loads the configuration, so that this package
imports no service, and an image with one service reads past the other's sections.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.adapters.spec import AdapterSpec, BaseModel
from fedlora.codecs.spec import CodecSpec
from fedlora.config.keys import Key, keys_of
from fedlora.plugins import Plugin, known_plugins
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import TrainingSpec

__all__ = [
    "METHOD_RULES",
    "PLUGIN_SECTIONS",
    "SAMPLER",
    "SERVICE_SECTIONS",
    "SWITCH",
    "Section",
    "all_sections",
    "run_sections",
]

SERVICE_SECTIONS: Mapping[str, str] = {
    "data": "A worker's examples.",
    "worker": "One worker process.",
    "workers": "The workers that `fedlora run` starts on this machine.",
    "server": "The aggregator process.",
}
"""sections whose dataclass the caller supplies, with what they are about"""

METHOD_RULES: Mapping[str, str] = {
    "weighting": "How much each update counts",
    "compression": "How what the method makes of the updates becomes an adapter of rank r",
    "server_optimizer": "How far the global adapter follows a round's result",
}
"""sections of the rules around the method, with what they are about"""

SAMPLER = "sampler"
"""section of a client sampler with its options"""

PLUGIN_SECTIONS = "plugins"
"""what the names of plug-ins' sections begin with"""

SWITCH = Key(
    name="enabled",
    attribute="enabled",
    annotation=bool,
    default=True,
    help="false: the run is as if the section were not there",
)
"""a key of every plug-in's section, so that a flag can turn one on or off"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of the file."""

    name: str
    """as in the file, "data.partition" """
    help: str
    keys: tuple[Key, ...]
    open: bool = False
    """further keys are let through, to be judged by whoever knows them"""
    on_demand: bool = False
    """it counts only where somebody writes it, though every key has a default"""

    @property
    def path(self) -> tuple[str, ...]:
        """The name taken apart."""
        return tuple(self.name.split("."))

    def key(self, name: str) -> Key | None:
        """The key of that name."""
        return next((k for k in self.keys if k.name == name), None)


@functools.cache
def run_sections() -> tuple[Section, ...]:
    """The sections that define a run."""
    adapter = ("kind", "r", "lora_alpha", "use_rslora", "lora_dropout")
    modules = ("target_modules", "modules_to_save")
    return (
        Section(
            name="run",
            help="Name and seed of a run.",
            keys=keys_of(RunSpec, name="", seed="", wire_dtype=""),
        ),
        Section(
            name="model",
            help="The frozen base model and what it is trained for.",
            keys=(
                *keys_of(BaseModel, model_id="base", revision="", fingerprint="", quantization=""),
                *keys_of(AdapterSpec, task_type="task", labels=""),
            ),
        ),
        Section(
            name="adapter",
            help="The adapter, in PEFT's words.",
            keys=keys_of(AdapterSpec, **dict.fromkeys((*adapter, *modules), "")),
        ),
        Section(
            name="method",
            help="The aggregation method; its own options stand beside its name "
            "([algorithms.md](algorithms.md)).",
            keys=keys_of(MethodSpec, name="", gauge=""),
            open=True,
        ),
        *(
            Section(
                name=name,
                help=f"{text} ([algorithms.md](algorithms.md)); leave the section out for the "
                "method's own. The rule's options stand beside its name.",
                keys=keys_of(RuleSpec, name=""),
                open=True,
            )
            for name, text in METHOD_RULES.items()
        ),
        Section(name="rounds", help="When rounds begin and end.", keys=keys_of(RoundRules)),
        Section(
            name=SAMPLER,
            help="Which workers a round takes, where it does not take all, in place of "
            "`rounds.sampling` ([algorithms.md](algorithms.md#client-samplers)); leave the section "
            "out for one that `rounds.sampling` names. The sampler's options stand beside its "
            "name.",
            keys=keys_of(RuleSpec, name=""),
            open=True,
        ),
        Section(
            name="training",
            help="Local training; equal for all workers of a run.",
            keys=keys_of(TrainingSpec),
        ),
        Section(
            name="codec",
            help="How workers write their updates ([codecs.md](codecs.md)); leave the section out "
            "to send them plainly, in `run.wire_dtype`.",
            keys=keys_of(CodecSpec),
        ),
        Section(
            name="data.partition",
            help="An experiment's split of one file over several workers; leave the section out "
            "where every worker brings its own data.",
            keys=keys_of(PartitionSpec),
        ),
        Section(
            name="continual",
            help="Classes or tasks that join while the run goes on "
            "([evaluation.md](evaluation.md)); leave the section out where all are there from the "
            "beginning.",
            keys=keys_of(ContinualSpec),
        ),
        *(_plugin_section(plugin) for plugin in known_plugins().values()),
    )


def _plugin_section(plugin: Plugin) -> Section:
    summary = (inspect.getdoc(type(plugin)) or "").splitlines()[0]
    return Section(
        name=f"{PLUGIN_SECTIONS}.{plugin.name}",
        help=f"{summary} A plug-in ([algorithms.md](algorithms.md)): leave the section out to do "
        "without.",
        keys=(SWITCH, *keys_of(type(plugin))),
        on_demand=True,
    )


def all_sections(services: Mapping[str, type]) -> tuple[Section, ...]:
    """The run's sections and those whose dataclass is given."""
    return (
        *run_sections(),
        *(
            Section(name=name, help=help_text, keys=keys_of(services[name]))
            for name, help_text in SERVICE_SECTIONS.items()
            if name in services
        ),
    )
