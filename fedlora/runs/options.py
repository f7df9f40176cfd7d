"""Options by name: how a method, a rule or a plug-in is made from what a configuration says.

The fields of a frozen dataclass are its options. A name or a value that does not fit is refused
with the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from fedlora.errors import FedLoraError, Reason

__all__ = ["Option", "options", "suggest", "with_options"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option, as its dataclass declares it."""

    name: str
    type: type
    default: float | int | bool | str

    @property
    def values(self) -> tuple[str, ...]:
        """The values it may take; empty where its type says it."""
        return tuple(self.type) if issubclass(self.type, enum.StrEnum) else ()


def options(cls: type[object]) -> tuple[Option, ...]:
    """The options of a method, rule or plug-in, in the order of its declaration.

    A field whose metadata says "option" = False is for code.
    """
    hints = typing.get_type_hints(cls)
    return tuple(
        Option(name=f.name, type=hints[f.name], default=typing.cast("str", f.default))
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.metadata.get("option", True)
    )


def with_options(
    default: T,
    name: str,
    given: Mapping[str, float | int | bool | str] | None,
    *,
    elsewhere: Mapping[str, str] | None = None,
) -> T:
    """A copy of `default` with the given values; the other options keep theirs.

    Args:
        default: a frozen dataclass of options.
        name: what messages call it.
        given: values by option.
        elsewhere: hints for what somebody may look for among the options, and is none.

    Raises:
        FedLoraError: INVALID_ARGUMENT for an option it does not have or a value it cannot take.
    """
    known = {option.name: option for option in options(type(default))}
    values: dict[str, object] = {}
    for key, value in (given or {}).items():
        if key not in known:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"{name} has no option {key!r}",
                hint=(elsewhere or {}).get(key)
                or (suggest(key, known) if known else f"{name} has no options"),
            )
        values[key] = _coerced(name, known[key], value)
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def suggest(word: str, known: Mapping[str, object]) -> str:
    """The nearest known word, and all of them."""
    squeezed = {k.replace("_", ""): k for k in known}
    wanted = word.lower().replace("_", "").replace("-", "")
    near = difflib.get_close_matches(wanted, squeezed, n=1)
    listed = ", ".join(known)
    return f"Did you mean {squeezed[near[0]]!r}? Known: {listed}" if near else f"Known: {listed}"


def _coerced(owner: str, option: Option, value: object) -> object:
    """The value in the option's type. Wire formats without integers send 200.0 for 200."""
    if issubclass(option.type, enum.StrEnum):
        if isinstance(value, str) and value in option.values:
            return option.type(value)
        wanted = f"one of {', '.join(option.values)}"
    elif option.type is bool:
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif option.type is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if whole and not isinstance(value, bool):
            return int(typing.cast("float", value))
        wanted = "an integer"
    else:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        wanted = "a number"
    raise FedLoraError(
        Reason.INVALID_ARGUMENT,
        f"option {option.name!r} of {owner}: expected {wanted}, got {value!r}",
    )
