"""Keys and values are checked by pydantic models that are made from the sections' keys.

Numbers and booleans are taken strictly: `num_rounds = "8"` in a file is a mistake worth telling.
What pydantic finds wrong is told in our words: key, what was expected, what came, where it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, create_model

from fedlora.config.keys import REQUIRED, Key, did_you_mean
from fedlora.config.sections import Section
from fedlora.config.sources import Origin
from fedlora.errors import FedLoraError, Reason

__all__ = ["explain", "missing_key", "section_models"]

_STRICT = (bool, int, float, str)


# A study checks a hundred configurations of the same sections, and making the models is most of it.
@functools.lru_cache(maxsize=16)
def section_models(sections: tuple[Section, ...]) -> Mapping[str, type[BaseModel]]:
    """A pydantic model per top-level section; "data.partition" becomes a field of "data"."""
    nested: dict[str, dict[str, Any]] = {}
    for section in sections:
        if len(section.path) == 2:
            parent, name = section.path
            nested.setdefault(parent, {})[name] = (_model(section, {}) | None, None)
    models = {s.name: _model(s, nested.pop(s.name, {})) for s in sections if len(s.path) == 1}
    for parent, fields in nested.items():
        models[parent] = create_model(parent, __config__=_config("ignore"), **fields)
    return models


def explain(
    error: ValidationError,
    sections: Sequence[Section],
    origin: Callable[[tuple[str, ...]], Origin],
    file: Path | None,
) -> FedLoraError:
    """What pydantic found wrong first, in our words."""
    # A misspelt key explains a missing one, so it is told first.
    order = {"extra_forbidden": 0, "missing": 2}
    detail = min(error.errors(), key=lambda d: order.get(d["type"], 1))
    place = tuple(str(part) for part in detail["loc"])
    section, key_name = _locate(place, sections)
    key = section.key(key_name)
    if detail["type"] == "extra_forbidden":
        return FedLoraError(
            Reason.INVALID_CONFIG,
            f"{_where(origin(place), file)}: unknown key {key_name!r} in section [{section.name}]",
            hint=did_you_mean(key_name, [k.name for k in section.keys]),
        )
    if detail["type"] == "missing" and key:
        return missing_key(section.name, key, file)
    path = (*section.path, key_name) if key_name else section.path
    return _wrong_value(".".join(path), key, detail["input"], origin(path), file)


def missing_key(section: str, key: Key, file: Path | None) -> FedLoraError:
    """The error for a required key that nobody has written."""
    where = f" in {file}" if file else ""
    return FedLoraError(
        Reason.INVALID_CONFIG,
        f"{section}.{key.name} is missing{where}: {key.help or key.expected}",
        hint=f"Write {key.name} = ... in section [{section}]",
    )


def _wrong_value(
    name: str, key: Key | None, got: object, origin: Origin, file: Path | None
) -> FedLoraError:
    expected = key.expected if key else "a section"
    hint = ""
    if key and key.choices and isinstance(got, str):
        hint = did_you_mean(got, key.choices)
    return FedLoraError(
        Reason.INVALID_CONFIG,
        f"{_where(origin, file)}: {name}: expected {expected}, got {got!r}",
        hint=hint,
    )


def _where(origin: Origin, file: Path | None) -> str:
    return str(file) if file and origin.place == file.name else str(origin)


def _locate(place: tuple[str, ...], sections: Sequence[Section]) -> tuple[Section, str]:
    """The section and key of pydantic's location, which may go on into a list or a union."""
    longest = max(
        (s for s in sections if s.path == place[: len(s.path)]), key=lambda s: len(s.path)
    )
    rest = place[len(longest.path) :]
    return longest, rest[0] if rest else ""


def _model(section: Section, nested: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        key.name: (
            _annotation(key.annotation),
            Field(... if key.default is REQUIRED else key.default, description=key.help),
        )
        for key in section.keys
    }
    model: type[BaseModel] = create_model(
        section.name, __config__=_config("allow" if section.open else "forbid"), **fields, **nested
    )
    return model


def _config(extra: Any) -> ConfigDict:
    return ConfigDict(extra=extra, protected_namespaces=())


def _annotation(annotation: Any) -> Any:
    return Annotated[annotation, Strict()] if annotation in _STRICT else annotation
