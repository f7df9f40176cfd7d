"""Domain dataclasses as JSON that any program can read.

JSON has no NaN, so a figure that is not there is null; reading it back gives NaN again where the
dataclass wants a number.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Mapping
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
    mend = _mend_of(domain_type)
    whole = mend(record) if mend else record
    return cast("T", _adapter(cast("Any", domain_type)).validate_python(whole))


@functools.cache
def _adapter(domain_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(domain_type)


_Mend = Callable[[Any], object]


def _find_mend(annotation: Any) -> _Mend | None:
    if annotation is float:
        return lambda record: math.nan if record is None else record
    if dataclasses.is_dataclass(annotation):
        # Resolving a class's annotations takes longer than reading a record of it.
        hints = get_type_hints(annotation)
        fields = {name: mend for name, hint in hints.items() if (mend := _mend_of(hint))}
        return _where(dict, functools.partial(_mend_fields, fields)) if fields else None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple and (each := _mend_of(arguments[0])):
        return _where(list, functools.partial(_mend_items, each))
    if origin is Mapping and (each := _mend_of(arguments[1])):
        return _where(dict, functools.partial(_mend_values, each))
    inner = next((a for a in arguments if dataclasses.is_dataclass(a)), None)
    return _mend_of(inner) if inner is not None else None


_mend_of: Callable[[Any], _Mend | None] = functools.cache(_find_mend)
"""what makes a record of that type one with NaN for null wherever a number is due; None where no
number can be due"""


def _where(kind: type, mend: _Mend) -> _Mend:
    """What is of another kind is left to be refused."""
    return lambda record: mend(record) if isinstance(record, kind) else record


def _mend_items(mend: _Mend, record: list[object]) -> object:
    return [mend(item) for item in record]


def _mend_values(mend: _Mend, record: dict[str, object]) -> object:
    return {k: mend(v) for k, v in record.items()}


def _mend_fields(fields: Mapping[str, _Mend], record: dict[str, object]) -> object:
    return {k: fields[k](v) if k in fields else v for k, v in record.items()}
