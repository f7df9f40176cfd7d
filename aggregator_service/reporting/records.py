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

from fedlora.dataclass_fields import field_names

__all__ = ["from_record", "to_record"]

T = TypeVar("T")


def to_record(value: object) -> Any:
    """A dataclass as dictionaries, lists, strings and finite numbers, ready for `json.dumps`."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    names = field_names(kind)
    if names is not None:
        return {name: to_record(getattr(value, name)) for name in names}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): to_record(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_record(item) for item in value]
    return str(value) if isinstance(value, Path) else value


_PLAIN = frozenset({str, int, bool, type(None)})
"""most values; an enum's members are of its own type"""


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
