"""Domain dataclass <-> protobuf message, by field name.

Every domain type that crosses the wire is a frozen dataclass whose fields carry the
names of its message; so one pair of functions serves all of them, and a test
(`tests/contract/test_wire_roundtrip.py`) fails for a field that exists on one side only.

Rules, from the dataclass's annotation:

    int, float, bool, str, bytes   as they are
    StrEnum                        ENUM_TYPE_NAME_<VALUE IN CAPITALS>; an unset or unknown enum
                                   value is refused, never read as a default
    tuple[X, ...]                  repeated
    Mapping[str, X]                map, or google.protobuf.Struct
    X | None                       message presence
    float on a Timestamp           seconds since the epoch
    dataclass                      message
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fedlora.dataclass_fields import field_names
from fedlora.errors import FedLoraError, Reason

__all__ = ["from_message", "to_message"]

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_SCALARS = frozenset({bool, int, float, str, bytes})

_MOST_MESSAGES = 2**16
"""in one field: an empty one takes two bytes on the wire, and here some 10 us to read (measured);
as many of any use would not fit into a message of gRPC's"""


def to_message(value: object, message_type: type[M]) -> M:
    """The message that says what the dataclass `value` says."""
    message = message_type()
    _fill(value, message)
    return message


def from_message(message: Message, domain_type: type[T]) -> T:
    """The dataclass that says what `message` says.

    Raises:
        FedLoraError: INVALID_ARGUMENT for an enum that is unset or unknown, a required message
            that is absent, more items than a message has room for, or a value the dataclass itself
            refuses.
    """
    fields = _fields(typing.cast("Any", domain_type))
    return domain_type(**{f.name: _read(message, f, domain_type) for f in fields})


# --- domain -> message -------------------------------------------------------------------


def _fill(value: object, message: Message) -> None:
    names = field_names(type(value))
    if names is None:
        raise TypeError(f"expected a dataclass, got {type(value).__name__}")
    for name in names:
        item = getattr(value, name)
        if item is None:
            continue
        target = getattr(message, name)
        if type(target) in _SCALARS:
            setattr(message, name, _scalar(item, message, name))
        elif isinstance(target, struct_pb2.Struct):
            target.SetInParent()
            target.update(_plain(item))
        elif isinstance(target, timestamp_pb2.Timestamp):
            target.FromNanoseconds(round(item * 1e9))
        elif isinstance(item, Mapping):
            target.update(item)
        elif isinstance(item, tuple):
            _extend(item, target, message, name)
        else:
            target.SetInParent()
            _fill(item, target)


def _plain(item: Any) -> Any:
    # A Struct has no integers, no tuples, and no NaN that JSON could show.
    if isinstance(item, Mapping):
        return {str(k): _plain(v) for k, v in item.items()}
    if isinstance(item, list | tuple):
        return [_plain(v) for v in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _extend(items: tuple[Any, ...], target: Any, message: Message, name: str) -> None:
    for item in items:
        if field_names(type(item)) is not None:
            _fill(item, target.add())
        else:
            target.append(_scalar(item, message, name))


def _scalar(item: Any, message: Message, name: str) -> Any:
    if isinstance(item, enum.Enum):
        descriptor = _enum_descriptor(message, name)
        return descriptor.values_by_name[_prefix(descriptor) + str(item.value).upper()].number
    return item


# --- message -> domain -------------------------------------------------------------------


class _Form(enum.Enum):
    """What a field holds, whether once or repeated."""

    PLAIN = enum.auto()
    ENUM = enum.auto()
    MESSAGE = enum.auto()
    MAP = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """A field of a domain type, taken apart once: an annotation is asked slowly."""

    name: str
    is_optional: bool
    is_repeated: bool
    form: _Form
    kind: Any
    """of one item"""


def _read(message: Message, field: _Field, owner: type) -> Any:
    name, form = field.name, field.form
    if field.is_optional and not message.HasField(name):
        return None
    item = getattr(message, name)
    if field.is_repeated:
        if form is _Form.PLAIN:
            return tuple(item)
        if len(item) > _MOST_MESSAGES:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"{owner.__name__}.{name}: expected at most {_MOST_MESSAGES} items, got "
                f"{len(item)}",
            )
        return tuple(_value(x, field, message) for x in item)
    if form is _Form.PLAIN:
        is_time = isinstance(item, timestamp_pb2.Timestamp)
        return item.ToNanoseconds() / 1e9 if is_time else item
    if form is _Form.MAP:
        return MessageToDict(item) if isinstance(item, struct_pb2.Struct) else dict(item)
    if form is _Form.MESSAGE and not field.is_optional and not message.HasField(name):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"{owner.__name__}: expected field {name!r}, got none"
        )
    return _value(item, field, message)


def _value(item: Any, field: _Field, message: Message) -> Any:
    if field.form is _Form.MESSAGE:
        return from_message(item, field.kind)
    descriptor = _enum_descriptor(message, field.name)
    value = descriptor.values_by_number.get(item)
    if value is None or value.number == 0:
        known = ", ".join(v.name for v in descriptor.values if v.number)
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"{message.DESCRIPTOR.name}.{field.name}: expected one of {known}, got {item}",
        )
    return field.kind(value.name.removeprefix(_prefix(descriptor)).lower())


# --- names and annotations ---------------------------------------------------------------


@functools.cache
def _fields(domain_type: Any) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(domain_type)
    return tuple(_field(f.name, hints[f.name]) for f in dataclasses.fields(domain_type))


def _field(name: str, annotation: Any) -> _Field:
    optional, kind = _strip_optional(annotation)
    origin = typing.get_origin(kind)
    if origin is tuple:
        kind = typing.get_args(kind)[0]
    form = _Form.PLAIN
    if origin is not None and issubclass(origin, Mapping):
        form = _Form.MAP
    elif dataclasses.is_dataclass(kind):
        form = _Form.MESSAGE
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        form = _Form.ENUM
    return _Field(name, optional, origin is tuple, form, kind)


def _strip_optional(annotation: Any) -> tuple[bool, Any]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        rest = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        if len(rest) == 1 and len(typing.get_args(annotation)) == 2:
            return True, rest[0]
    return False, annotation


def _enum_descriptor(message: Message, name: str) -> EnumDescriptor:
    descriptor: Any = message.DESCRIPTOR.fields_by_name[name].enum_type
    if descriptor is None:
        raise TypeError(f"{message.DESCRIPTOR.name}.{name} is no enum")
    return typing.cast("EnumDescriptor", descriptor)


@functools.cache
def _prefix(descriptor: EnumDescriptor) -> str:
    # The acronym first, so that CausalLM would be CAUSAL_LM and DataType DATA_TYPE.
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", descriptor.name)
    return words.upper() + "_"
