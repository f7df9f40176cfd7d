"""Domain dataclasses as JSON that any program can read.

JSON has no NaN, so a figure that is not there is null; reading it back gives NaN again where the
dataclass wants a number.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

__all__ = ["from_record", "to_record"]

T = TypeVar("T")


def to_record(value: object) -> Any:
    """A dataclass as dictionaries, lists, strings and finite numbers, ready for `json.dumps`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_record(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_record(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_record(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def from_record(record: object, domain_type: type[T]) -> T:
    """The dataclass that `to_record` wrote.

    Raises:
        pydantic.ValidationError: the record is none of that type.
        FedLoraError: the dataclass refuses its values.
    """
    return cast(
        "T", _adapter(cast("Any", domain_type)).validate_python(_with_nan(record, domain_type))
    )


@functools.cache
def _adapter(domain_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(domain_type)


def _with_nan(record: object, annotation: Any) -> object:
    """The record with NaN for null wherever a number is due."""
    if annotation is float:
        return math.nan if record is None else record
    if dataclasses.is_dataclass(annotation) and isinstance(record, dict):
        hints = get_type_hints(annotation)
        return {k: _with_nan(v, hints.get(k)) for k, v in record.items()}
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(record, list):
        return [_with_nan(item, arguments[0]) for item in record]
    if get_origin(annotation) is Mapping and isinstance(record, dict):
        return {k: _with_nan(v, arguments[1]) for k, v in record.items()}
    if record is not None and any(dataclasses.is_dataclass(a) for a in arguments):
        return _with_nan(record, next(a for a in arguments if dataclasses.is_dataclass(a)))
    return record
