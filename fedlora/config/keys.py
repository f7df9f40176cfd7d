"""The keys of a configuration, read off the frozen dataclasses that hold its values.

A dataclass field says everything once: its name is the key, its annotation the type, its default
the default, and the docstring under it the help text. Python keeps no docstrings of fields, so they
are read from the class's source.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import enum
import functools
import inspect
import itertools
import json
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["REQUIRED", "Key", "did_you_mean", "field_help", "keys_of", "parse_literal"]


class _Required(enum.Enum):
    REQUIRED = "required"


REQUIRED = _Required.REQUIRED
"""default of a key that has none"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of one section."""

    name: str
    attribute: str
    """field of the dataclass; differs from the name where the file uses a shorter word"""
    annotation: Any
    default: object = dataclasses.field(hash=False)
    """a plug-in's may be a list"""
    help: str
    among: tuple[str, ...] = ()
    """of an enumeration: the values that may stand there; empty for all of them"""

    @property
    def expected(self) -> str:
        """What may stand there, in words."""
        return _one_of(self.choices) if self.choices else _expected(self.annotation)

    @property
    def is_path(self) -> bool:
        """The value names a file or folder."""
        return _without_none(self.annotation) is Path

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of an enumeration; empty for other types."""
        if self.among:
            return self.among
        kind = _without_none(self.annotation)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return tuple(str(member.value) for member in kind)
        return ()


def keys_of(owner: type, **names: str) -> tuple[Key, ...]:
    """The keys of a dataclass, in order; fields that hold dataclasses or mappings are left out.

    A field's metadata may say with "among" which values of an enumeration are meant, and with
    "option" = False that the field is for code and no key.

    Args:
        owner: a dataclass.
        names: field=key for each field to take, where only some are wanted; key "" keeps the
            field's own name.
    """
    hints = typing.get_type_hints(owner)
    helps = field_help(owner)
    keys = []
    for field in dataclasses.fields(owner):
        if (names and field.name not in names) or not field.metadata.get("option", True):
            continue
        annotation = hints[field.name]
        if _is_structure(annotation):
            continue
        keys.append(
            Key(
                name=names.get(field.name) or field.name,
                attribute=field.name,
                annotation=annotation,
                default=_default(field),
                help=helps.get(field.name, ""),
                among=tuple(field.metadata.get("among", ())),
            )
        )
    return tuple(keys)


@functools.cache
def field_help(owner: type) -> dict[str, str]:
    """The docstrings under the fields of a class and its parents, each on one line."""
    found: dict[str, str] = {}
    for parent in owner.__bases__:
        if dataclasses.is_dataclass(parent):
            found |= field_help(parent)
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    body = typing.cast("ast.ClassDef", tree.body[0]).body
    for statement, follower in itertools.pairwise(body):
        match statement, follower:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, or all of them where none is near."""
    words = sorted(known)
    if near := difflib.get_close_matches(word, words, n=1):
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(words)}" if words else ""


def parse_literal(text: str, annotation: Any) -> object:
    """The value that a flag or an environment variable means for a key of this type.

    Text that cannot be read that way is returned as it is, for the validation to refuse with the
    key's name. Without a type (an aggregation method's option) TOML's own rules decide.
    """
    kind = _without_none(annotation)
    if kind is not annotation and text == "":
        return None
    reader = _READERS.get(typing.get_origin(kind) or kind)
    if reader is None:
        return _unquoted(text) if kind is not None else _toml_or_text(text)
    try:
        return reader(text.strip())
    except (ValueError, tomllib.TOMLDecodeError):
        return text


# --- reading text ------------------------------------------------------------------------


def _read_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _read_list(text: str) -> list[object]:
    if text.startswith("["):
        return typing.cast("list[object]", tomllib.loads(f"value = {text}")["value"])
    return [part.strip() for part in text.split(",") if part.strip()]


_READERS: dict[Any, Any] = {bool: _read_bool, int: int, float: float, tuple: _read_list}


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text


def _toml_or_text(text: str) -> object:
    try:
        return typing.cast("object", tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        return text


# --- annotations -------------------------------------------------------------------------


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        rest = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        if len(rest) == 1:
            return rest[0]
    return annotation


def _is_structure(annotation: Any) -> bool:
    kind = _without_none(annotation)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return dataclasses.is_dataclass(typing.get_args(kind)[0])
    return dataclasses.is_dataclass(kind) or origin is not None


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default is not dataclasses.MISSING:
        return typing.cast("object", field.default)
    if field.default_factory is not dataclasses.MISSING:
        return typing.cast("object", field.default_factory())
    return REQUIRED


def _one_of(choices: Iterable[str]) -> str:
    return "one of " + ", ".join(f'"{choice}"' for choice in choices)


def _expected(annotation: Any) -> str:
    kind = _without_none(annotation)
    if typing.get_origin(kind) is tuple:
        return "a list of " + {str: "strings", int: "integers"}.get(
            typing.get_args(kind)[0], "values"
        )
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a path",
    }
    return words.get(kind, "a number, a string, true or false")
