"""Reads a configuration from all its sources and turns it into frozen dataclasses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fedlora.adapters.spec import AdapterSpec
from fedlora.adapters.spec import BaseModel as BaseModelSpec
from fedlora.codecs.spec import CodecSpec
from fedlora.config.checks import explain, missing_key, section_models
from fedlora.config.keys import REQUIRED, keys_of
from fedlora.config.sections import (
    METHOD_RULES,
    PLUGIN_SECTIONS,
    SAMPLER,
    SWITCH,
    Section,
    all_sections,
    run_sections,
)
from fedlora.config.sources import (
    EnvironmentSource,
    FileSource,
    FlagSource,
    Origin,
    OriginKind,
    TreeSource,
    leaves,
)
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import create_plugins
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import TrainingSpec

__all__ = ["CONFIG_VARIABLE", "Config", "ConfigEntry", "load_config"]

CONFIG_VARIABLE = "FEDLORA_CONFIG"
"""environment variable that names the file where no argument does"""

_RUN_ONLY = ("run", "model", "adapter", "method", "rounds", "training")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigEntry:
    """One resolved value."""

    section: str
    key: str
    value: object
    origin: Origin
    help: str = ""

    @property
    def name(self) -> str:
        """Section and key, "rounds.num_rounds"."""
        return f"{self.section}.{self.key}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A checked configuration: every value with its origin, and the dataclasses made of them."""

    file: Path | None
    entries: tuple[ConfigEntry, ...]
    run: RunSpec | None
    """the run described; None where no source has a [run] section"""
    services: Mapping[str, type]

    def section(self, name: str) -> dict[str, Any]:
        """The values of one section by key."""
        return {e.key: e.value for e in self.entries if e.section == name}

    def build(self, section: str, owner: type[T], **others: object) -> T:
        """The dataclass of a service's section, filled.

        Args:
            section: one of those given to `load_config`.
            owner: its dataclass, as given there.
            others: fields that are no keys, such as a nested dataclass built before.

        Raises:
            FedLoraError: INVALID_CONFIG where the dataclass refuses the values.
        """
        if self.services.get(section) is not owner:
            raise TypeError(f"section {section!r} was not loaded as {owner.__name__}")
        values = self.section(section)
        for key in keys_of(owner):
            if key.default is REQUIRED and key.name not in values:
                raise missing_key(section, key, self.file)
        return _checked(lambda: owner(**values, **others), self.entries)

    def need_run(self) -> RunSpec:
        """The run described; INVALID_CONFIG where there is none."""
        if self.run is None:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"{self.file or 'the configuration'} describes no run",
                hint='Write a section [run] with name = "..."; see examples/quickstart.toml',
            )
        return self.run


def load_config(
    file: Path | None = None,
    *,
    services: Mapping[str, type] | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Reads file, environment and flags, later ones over earlier ones.

    Args:
        file: TOML file; None takes FEDLORA_CONFIG from the environment, or no file at all.
        services: section name -> dataclass for the sections "server", "worker", "data" and
            "workers" that the caller wants; the others are read past.
        overrides: flags of the form section.key=value.
        environ: the environment; os.environ if None.

    Raises:
        FedLoraError: INVALID_CONFIG naming the file or variable, the section and the key.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get(CONFIG_VARIABLE):
        file = Path(environ[CONFIG_VARIABLE])
    services = dict(services or {})
    sections = all_sections(services)
    sources: list[FlagSource | EnvironmentSource | FileSource] = [
        FlagSource(overrides, sections),
        EnvironmentSource(environ, sections),
    ]
    if file is not None:
        if not file.is_file():
            raise FedLoraError(
                Reason.INVALID_CONFIG, f"there is no configuration file {str(file)!r}"
            )
        sources.append(FileSource(file, sections))
    written = [leaves(source()) for source in sources]

    def origin(path: tuple[str, ...]) -> Origin:
        for source, values in zip(sources, written, strict=True):
            if any(place[: len(path)] == path for place in values):
                return source.origin(path)
        return Origin(OriginKind.DEFAULT)

    has_run = any(path[0] in _RUN_ONLY for values in written for path in values)
    asked = tuple(
        s
        for s in sections
        if (has_run if s.name in _RUN_ONLY else _is_optional(s) or _is_written(s, written))
    )
    try:
        settings = _merge(section_models(asked), sources)
    except ValidationError as error:
        raise explain(error, sections, origin, file) from None
    entries = tuple(e for s in asked for e in _entries(s, settings, origin))
    run = _checked(lambda: _run_spec(entries), entries) if has_run else None
    if run is not None:
        # Their options are checked where they are made.
        _checked(lambda: create_plugins(run.plugins), entries)
    return Config(file=file, entries=entries, run=run, services=services)


def _is_optional(section: Section) -> bool:
    return not section.on_demand and all(key.default is not REQUIRED for key in section.keys)


def _is_written(section: Section, written: Sequence[Mapping[tuple[str, ...], Any]]) -> bool:
    # Of data.partition.num_slots the section is data.partition, not data.
    return any(section.path in (path, path[:-1]) for values in written for path in values)


def _merge(
    models: Mapping[str, type[BaseModel]], sources: Sequence[PydanticBaseSettingsSource]
) -> BaseSettings:
    """Puts the sources over one another, first ones on top, and checks the result."""
    # A section nobody wrote is checked all the same: a key of it may be required.
    lowest = TreeSource({name: {} for name in models})

    class Settings(BaseSettings):
        model_config = SettingsConfigDict(extra="ignore", protected_namespaces=())

        @classmethod
        def settings_customise_sources(
            cls, *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (*sources, lowest)

    fields: dict[str, Any] = {name: (model, ...) for name, model in models.items()}
    checked: type[BaseSettings] = create_model("Settings", __base__=Settings, **fields)
    return checked()


def _entries(
    section: Section, settings: BaseSettings, origin: Callable[[tuple[str, ...]], Origin]
) -> Iterator[ConfigEntry]:
    values: Any = settings
    for part in section.path:
        values = getattr(values, part, None)
    if not isinstance(values, BaseModel):
        return
    helps = {key.name: key.help for key in section.keys}
    for name in [*helps, *(values.model_extra or {})]:
        yield ConfigEntry(
            section=section.name,
            key=name,
            value=getattr(values, name),
            origin=origin((*section.path, name)),
            help=helps.get(name, ""),
        )


def _run_spec(entries: Sequence[ConfigEntry]) -> RunSpec:
    values: dict[str, dict[str, Any]] = {}
    for section in run_sections():
        attributes = {key.name: key.attribute for key in section.keys}
        values[section.name] = {
            attributes.get(e.key, e.key): e.value for e in entries if e.section == section.name
        }
    model, method = values["model"], values["method"]
    partition, codec = values["data.partition"], values["codec"]
    continual = values["continual"]
    rules = {
        name: RuleSpec(name=values[name].pop("name"), options=values[name])
        for name in (*METHOD_RULES, SAMPLER)
        if values[name]
    }
    sampler = rules.pop(SAMPLER, None)
    plugins = [
        RuleSpec(name=section.path[1], options=values[section.name])
        for section in run_sections()
        if section.path[0] == PLUGIN_SECTIONS and values[section.name].pop(SWITCH.name, False)
    ]
    task = {"task_type": model.pop("task_type"), "labels": model.pop("labels")}
    return RunSpec(
        **values["run"],
        adapter=AdapterSpec(base_model=BaseModelSpec(**model), **task, **values["adapter"]),
        method=MethodSpec(
            name=method.pop("name"), gauge=method.pop("gauge"), options=method, **rules
        ),
        rounds=RoundRules(**values["rounds"], sampler=sampler),
        training=TrainingSpec(**values["training"]),
        partition=PartitionSpec(**partition) if partition else None,
        codec=CodecSpec(**codec) if codec else None,
        plugins=tuple(plugins),
        continual=ContinualSpec(**continual) if continual else None,
    )


def _checked(make: Callable[[], T], entries: Sequence[ConfigEntry]) -> T:
    """What the dataclasses refuse is a fault of the configuration, and told with its place."""
    try:
        return make()
    except FedLoraError as error:
        named = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", error.message)
        places = {
            str(entry.origin)
            for entry in entries
            for name in named
            if entry.origin.kind is not OriginKind.DEFAULT and f".{entry.name}".endswith(f".{name}")
        }
        where = f" ({', '.join(sorted(places))})" if places else ""
        raise FedLoraError(
            Reason.INVALID_CONFIG, f"{error.message}{where}", hint=error.hint
        ) from None
