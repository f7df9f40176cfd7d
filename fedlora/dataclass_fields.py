"""The names of a dataclass's fields, looked up once a type: asking `dataclasses` is slow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

__all__ = ["field_names"]


def _field_names(kind: Any) -> tuple[str, ...] | None:
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(field.name for field in dataclasses.fields(kind))


field_names: Callable[[type], tuple[str, ...] | None] = functools.cache(_field_names)
"""of a dataclass, in order; None for any other type"""
