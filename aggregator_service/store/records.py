"""Domain values as JSON text and back, by pydantic."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fedlora.errors import FedLoraError, Reason

__all__ = ["dump", "load"]

T = TypeVar("T")


def load(adapter: TypeAdapter[T], record: str) -> T:
    """The value that a text stands for.

    Raises:
        FedLoraError: STATE_CORRUPT for a text that is none: SQLite checks the shape of its pages,
            not what is written on them.
    """
    try:
        return adapter.validate_json(record)
    except (ValidationError, FedLoraError) as error:
        raise FedLoraError(
            Reason.STATE_CORRUPT,
            f"a stored record is damaged: {' '.join(str(error).split())[:300]}",
            hint="Restore the state directory from a backup",
        ) from error


def dump(adapter: TypeAdapter[Any], value: object, *, without: set[str] | None = None) -> str:
    """A value as text, but for some of its fields."""
    # By way of json: pydantic would write NaN, which a certificate may hold, as null.
    plain = adapter.dump_python(value, mode="json", exclude=without)
    return json.dumps(plain, separators=(",", ":"))
