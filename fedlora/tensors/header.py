"""The safetensors header, read more strictly than the library reads it.

safetensors 0.8 accepts duplicate names (the last wins), zero-size tensors by the million (a 67 MB
file took a minute and 915 MB), megabyte-long names and metadata, and any dtype (measured). A server
may not: what is accepted here holds exactly the tensors of the run's manifest, in one contiguous
block, and is found out to be something else before safetensors sees it.

Format: 8 bytes little-endian length N of the header, N bytes of JSON, the tensors' data.

The rules, in the order in which they are checked:

1. The file's size leaves room for the run's tensors and a header of at most `header_limit`, and N
   lies within both.
2. The first byte is `{`.
3. Strict JSON, no key twice in one object, no number but integers, and no more objects than the
   run has tensors (a megabyte of `{}` would cost more to parse than all other refusals).
4. The names are the manifest's, no more, no fewer.
5. Each dtype is the manifest's.
6. Each shape is the manifest's, and no dimension is zero.
7. The data lie without gap or overlap from the header's end to the end of the file.
8. `__metadata__` is absent, or an object of strings of at most 4 KiB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = [
    "LENGTH_BYTES",
    "ParsedHeader",
    "TensorSpan",
    "check_size",
    "data_order",
    "encode_header",
    "header_limit",
    "parse_header",
    "parse_length",
]

LENGTH_BYTES = 8
"""size of the length that goes before the header"""

_MIN_HEADER_LIMIT = 1024**2
_MAX_METADATA_BYTES = 4096
_ALIGNMENT = 8
"""what safetensors' own writer pads a header to, so that mapped tensors are aligned"""
_DTYPES = {d.safetensors_name: d for d in DataType}


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Where one tensor's data lies, in bytes from the start of the payload."""

    info: TensorInfo
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A header that declares exactly what it should."""

    spans: tuple[TensorSpan, ...]
    """in the order of their data"""
    metadata: Mapping[str, str]


def header_limit(manifest: TensorManifest) -> int:
    """Most bytes a header may have: 1 MiB, or twice what the manifest itself needs if that is more.

    A run with tens of thousands of modules needs more than 1 MiB; nobody needs twice its own names.
    """
    return max(_MIN_HEADER_LIMIT, 2 * len(encode_header(manifest)))


def check_size(total_bytes: int, manifest: TensorManifest) -> None:
    """Refuses a size that no payload of these tensors has, before any byte of it is there.

    Raises:
        FedLoraError: INVALID_PAYLOAD.
    """
    least = LENGTH_BYTES + 2 + manifest.data_bytes
    most = LENGTH_BYTES + header_limit(manifest) + manifest.data_bytes
    if not least <= total_bytes <= most:
        raise _invalid(f"it has {total_bytes} bytes, one with the run's tensors {least} to {most}")


def parse_length(data: bytes, *, total_bytes: int, limit: int) -> int:
    """Length of the header from the first 8 bytes of a payload.

    Raises:
        FedLoraError: INVALID_PAYLOAD if it cannot be the length of a header.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if not 2 <= length <= min(limit, total_bytes - LENGTH_BYTES):
        raise _invalid(
            f"the header declares {length} bytes; the file has {total_bytes}, and a header of this "
            f"run at most {limit}"
        )
    return length


def parse_header(header: bytes, manifest: TensorManifest, total_bytes: int) -> ParsedHeader:
    """Reads a header and checks it against what the file must hold.

    Args:
        header: the JSON, without the 8 bytes before it.
        manifest: the tensors the file must hold, exactly.
        total_bytes: size of the whole file.

    Raises:
        FedLoraError: INVALID_PAYLOAD for what is no strict header, MANIFEST_MISMATCH for a
            header of other tensors.
    """
    entries = _load(header, _max_objects(manifest))
    metadata = entries.pop("__metadata__", {})
    wanted = manifest.by_name
    if missing := wanted.keys() - entries.keys():
        raise _mismatch(f"{len(missing)} tensors are missing, first {min(missing)!r}")
    if extra := entries.keys() - wanted.keys():
        raise _mismatch(f"{len(extra)} tensors are not in the run, first {_short(min(extra))}")
    data_begin = LENGTH_BYTES + len(header)
    spans = [_check_entry(entries[name], info, data_begin) for name, info in wanted.items()]
    spans.sort(key=lambda s: s.begin)
    position = data_begin
    for span in spans:
        if span.begin != position:
            raise _invalid(
                f"tensor {span.info.name!r} begins at byte {span.begin}, expected {position}: data "
                f"must lie without gap or overlap"
            )
        position = span.end
    if position != total_bytes:
        raise _invalid(f"the tensors end at byte {position}, the file at {total_bytes}")
    return ParsedHeader(tuple(spans), _check_metadata(metadata))


def data_order(manifest: TensorManifest) -> tuple[TensorInfo, ...]:
    """The tensors in the order in which safetensors writes their data.

    Wide elements go first, so that each tensor is aligned; among equals the name decides.
    """
    ranks = {DataType.F32: 0, DataType.BF16: 1, DataType.F16: 2, DataType.U8: 3}
    return tuple(sorted(manifest.tensors, key=lambda t: (ranks[t.dtype], t.name)))


def encode_header(manifest: TensorManifest, metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and canonical header of a file, byte for byte as safetensors' own writer makes it."""
    entries: dict[str, Any] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for info in data_order(manifest):
        entries[info.name] = {
            "dtype": info.dtype.safetensors_name,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.num_bytes],
        }
        position += info.num_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _max_objects(manifest: TensorManifest) -> int:
    """Most braces that a header of these tensors can hold, those in names and metadata included."""
    in_names = sum(t.name.count("{") for t in manifest.tensors)
    return len(manifest.tensors) + 2 + in_names + _MAX_METADATA_BYTES


def _load(header: bytes, max_objects: int) -> dict[str, Any]:
    if header[:1] != b"{":
        raise _invalid(f"the header begins with {header[:1]!r}, expected {b'{'!r}")
    if (found := header.count(b"{")) > max_objects:
        raise _invalid(f"the header holds {found} objects, at most {max_objects} are expected")
    try:
        entries = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_integer,
            parse_float=_no_integer,
        )
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the header is no strict JSON: {str(error)[:200]}") from error
    # What begins with a brace and is JSON is an object.
    return dict(entries)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{_short(name)} occurs twice")
            seen.add(name)
    return entries


def _no_integer(text: str) -> None:
    raise ValueError(f"expected an integer, got {text[:40]}")


def _check_metadata(metadata: object) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _invalid("__metadata__ is no object of strings")
    try:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in metadata.items())
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which is no text.
        raise _invalid("__metadata__ holds what is no Unicode text") from error
    if size > _MAX_METADATA_BYTES:
        raise _invalid(f"__metadata__ has {size} bytes, at most {_MAX_METADATA_BYTES} are allowed")
    return metadata


def _check_entry(entry: object, info: TensorInfo, data_begin: int) -> TensorSpan:
    name = info.name
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _invalid(f"tensor {name!r}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or _DTYPES.get(dtype) is not info.dtype:
        raise _mismatch(
            f"tensor {name!r}: expected {info.dtype.safetensors_name}, got {_short(dtype)}"
        )
    if not _is_sizes(shape) or tuple(shape) != info.shape:
        raise _mismatch(f"tensor {name!r}: expected shape {list(info.shape)}, got {_short(shape)}")
    if not info.num_bytes:
        raise _mismatch(f"tensor {name!r}: a tensor of shape {list(info.shape)} has no elements")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise _invalid(f"tensor {name!r}: data_offsets are {_short(offsets)}")
    if offsets[1] - offsets[0] != info.num_bytes:
        raise _invalid(
            f"tensor {name!r}: {offsets[1] - offsets[0]} bytes of data for {info.num_bytes}"
        )
    return TensorSpan(info, data_begin + offsets[0], data_begin + offsets[1])


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in value
    )


def _short(value: object) -> str:
    """A peer's value as it may stand in an error or a log: escaped, and cut."""
    return ascii(value)[:200]


def _invalid(text: str) -> FedLoraError:
    return FedLoraError(Reason.INVALID_PAYLOAD, f"no acceptable safetensors file: {text}")


def _mismatch(text: str) -> FedLoraError:
    return FedLoraError(Reason.MANIFEST_MISMATCH, f"the file is not what the run exchanges: {text}")
