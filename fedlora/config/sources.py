"""Where values come from: a TOML file, the environment, flags; each a source of pydantic-settings.

A source gives its values as `{section: {key: value}}` and is judged here for what only it can get
wrong: sections nobody knows, variables with a misspelt separator, flags without a value. Keys and
values are judged together later, once the sources are merged.
"""

from __future__ import annotations

import enum
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fedlora.config.keys import did_you_mean, parse_literal
from fedlora.config.sections import (
    PLUGIN_SECTIONS,
    SERVICE_SECTIONS,
    Section,
    run_sections,
)
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.installed import PLUGINS_GROUP, installed

__all__ = [
    "ENVIRONMENT_PREFIX",
    "EnvironmentSource",
    "FileSource",
    "FlagSource",
    "Origin",
    "OriginKind",
    "Tree",
    "TreeSource",
    "leaves",
]

ENVIRONMENT_PREFIX = "FEDLORA_"

Tree = dict[str, Any]

# Strings that are a path if they look like one, and otherwise a name on a hub.
_PATH_OR_NAME = {("model", "base"), ("data", "path"), ("data", "test_path")}
_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class OriginKind(enum.StrEnum):
    """Kind of source of a value."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written."""

    kind: OriginKind
    place: str = ""
    """file name, variable or flag"""

    def __str__(self) -> str:
        return self.place or self.kind.value


class TreeSource(PydanticBaseSettingsSource):
    """A source whose values are complete once it is made."""

    def __init__(self, values: Tree) -> None:
        super().__init__(BaseSettings)
        self._values = values

    def get_field_value(self, _field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """One section; pydantic-settings' interface."""
        return self._values.get(field_name), field_name, False

    def __call__(self) -> Tree:
        """All values; pydantic-settings' interface."""
        return self._values


class FileSource(TreeSource):
    """A TOML file; relative paths in it are meant from its own folder."""

    def __init__(self, file: Path, sections: Sequence[Section]) -> None:
        self.file = file
        try:
            # Editors of Windows begin UTF-8 with a mark that TOML does not know.
            tree = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FedLoraError(
                Reason.INVALID_CONFIG, f"{file} is no TOML: {error}", hint="See https://toml.io"
            ) from None
        except OSError as error:
            raise FedLoraError(
                Reason.INVALID_CONFIG, f"cannot read {file}: {error.strerror}"
            ) from None
        for name, value in tree.items():
            if name not in _section_names():
                kind = "section" if isinstance(value, dict) else "key outside any section,"
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"{file}: unknown {kind} {name!r}",
                    hint=did_you_mean(name, _section_names()),
                )
        super().__init__(_known(tree, sections, str(file)))
        for section in sections:
            _resolve_paths(self._values, section, file.parent)

    def origin(self, _path: tuple[str, ...]) -> Origin:
        """The file, for any key."""
        return Origin(OriginKind.FILE, self.file.name)


class EnvironmentSource(TreeSource):
    """Variables named FEDLORA_SECTION__KEY."""

    def __init__(self, environ: Mapping[str, str], sections: Sequence[Section]) -> None:
        tree: Tree = {}
        for variable in sorted(environ):
            path = _path_of(variable, sections)
            if len(path) > 1:
                _plant(tree, path, _typed(environ[variable], path, sections), variable)
        super().__init__(_here(_known(tree, sections, "the environment"), sections))

    def origin(self, path: tuple[str, ...]) -> Origin:
        """The variable of a key."""
        return Origin(OriginKind.ENVIRONMENT, ENVIRONMENT_PREFIX + "__".join(path).upper())


class FlagSource(TreeSource):
    """Flags of the form section.key=value."""

    def __init__(self, overrides: Sequence[str], sections: Sequence[Section]) -> None:
        tree: Tree = {}
        for override in overrides:
            name, equals, text = override.partition("=")
            path = tuple(part.strip() for part in name.split("."))
            if not equals or len(path) < 2 or not all(path):
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"--set: expected section.key=value, got {override!r}",
                    hint="For example --set rounds.num_rounds=4",
                )
            if path[0] not in _section_names():
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"--set {override}: unknown section {path[0]!r}",
                    hint=did_you_mean(path[0], _section_names()),
                )
            _plant(tree, path, _typed(text, path, sections), f"--set {override}")
        super().__init__(_here(_known(tree, sections, "--set"), sections))

    def origin(self, _path: tuple[str, ...]) -> Origin:
        """The flag, for any key."""
        return Origin(OriginKind.FLAG, "--set")


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The values of a tree by their path."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        # An empty section is written all the same.
        if isinstance(value, dict) and value:
            found |= leaves(value, (*path, name))
        else:
            found[(*path, name)] = value
    return found


# --- helpers -----------------------------------------------------------------------------


def _section_names() -> set[str]:
    return {s.path[0] for s in run_sections()} | set(SERVICE_SECTIONS)


def _known(tree: Tree, sections: Sequence[Section], where: str) -> Tree:
    """The part of a tree that is in sections to be read; the rest belongs to another program."""
    whole = {s.path[0] for s in sections if len(s.path) == 1}
    nested = {s.path for s in sections if len(s.path) > 1}
    kept: Tree = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            raise FedLoraError(
                Reason.INVALID_CONFIG, f"{where}: [{name}] is a section, got {value!r}"
            )
        if name in whole:
            kept[name] = value
        else:
            # The partition belongs to the run, the rest of [data] to a worker.
            inner = {k: v for k, v in value.items() if (name, k) in nested}
            _check_plugins(name, value.keys() - inner.keys(), nested, where)
            if inner:
                kept[name] = inner
    return kept


def _check_plugins(
    name: str, unknown: Collection[str], nested: Collection[tuple[str, ...]], where: str
) -> None:
    """Refuses a plug-in that nobody knows, with the nearest one."""
    if name == PLUGIN_SECTIONS and unknown:
        wrong = min(unknown)
        if (broken := installed(PLUGINS_GROUP).broken.get(wrong)) is not None:
            raise broken
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"{where}: there is no plug-in {wrong!r}",
            hint=did_you_mean(wrong, [path[1] for path in nested if path[0] == name]),
        )


def _path_of(variable: str, sections: Sequence[Section]) -> tuple[str, ...]:
    """The path a variable means; a single part if it is none of ours."""
    if not variable.startswith(ENVIRONMENT_PREFIX):
        return ("",)
    rest = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    path = tuple(rest.split("__"))
    if len(path) > 1:
        if path[0] not in _section_names():
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"environment variable {variable}: unknown section {path[0]!r}",
                hint=did_you_mean(path[0], _section_names()),
            )
        return path
    # One underscore instead of two would be passed over in silence. Names that are no key are not
    # ours to judge: Kubernetes sets FEDLORA_SERVER_PORT for a service called fedlora-server.
    for section in sections:
        for key in section.keys:
            if rest == "_".join((*section.path, key.name)):
                right = ENVIRONMENT_PREFIX + "__".join((*section.path, key.name)).upper()
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"environment variable {variable} sets nothing",
                    hint=f"Section and key are joined by two underscores: {right}",
                )
    return (rest,)


def _plant(tree: Tree, path: tuple[str, ...], value: object, where: str) -> None:
    *parents, name = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise FedLoraError(
                Reason.INVALID_CONFIG, f"{where}: {parent!r} holds a value, not a section"
            )
    tree[name] = value


def _typed(text: str, path: tuple[str, ...], sections: Sequence[Section]) -> object:
    for section in sections:
        if section.path == path[:-1]:
            key = section.key(path[-1])
            return parse_literal(text, key.annotation if key else None)
    return text


def _here(values: Tree, sections: Sequence[Section]) -> Tree:
    for section in sections:
        _resolve_paths(values, section, Path.cwd())
    return values


def _resolve_paths(values: Tree, section: Section, folder: Path) -> None:
    inner: Any = values
    for part in section.path:
        inner = inner.get(part)
        if not isinstance(inner, dict):
            return
    for key in section.keys:
        value = inner.get(key.name)
        if not isinstance(value, str) or not value:
            continue
        if key.is_path or (
            (*section.path, key.name) in _PATH_OR_NAME
            and _looks_like_path(section.name, value, folder)
        ):
            # An absolute value stays as it is.
            inner[key.name] = str((folder / value).resolve())


def _looks_like_path(section: str, value: str, folder: Path) -> bool:
    if re.match(r"\.{1,2}/", value):
        return True
    return section == "data" and (value.endswith(_DATA_SUFFIXES) or (folder / value).exists())
