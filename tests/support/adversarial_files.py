"""Files that a worker might send and the server must refuse, each with the reason it must give.

`python -m support.adversarial_files` (in tests/) prints the table of tests/adversarial/README.md.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import deserialize
from safetensors.torch import save

from fedlora.errors import Reason
from fedlora.tensors.manifest import FLOATS, DataType, TensorInfo, TensorManifest

A, B, BIAS = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "bias"
RANK, IN, OUT = 2, 6, 5


def manifest(dtype: DataType = DataType.F32) -> TensorManifest:
    """The run's manifest in all these tests."""
    return TensorManifest(
        tensors=(
            TensorInfo(name=A, shape=(RANK, IN), dtype=dtype),
            TensorInfo(name=B, shape=(OUT, RANK), dtype=dtype),
            TensorInfo(name=BIAS, shape=(3,), dtype=dtype),
        )
    )


MANIFEST = manifest()


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """What an honest worker sends."""
    generator = torch.Generator().manual_seed(1)
    shapes = {A: (RANK, IN), B: (OUT, RANK), BIAS: (3,)}
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


def raw(header: bytes, data: bytes = b"") -> bytes:
    """A file with any header."""
    return struct.pack("<Q", len(header)) + header + data


def entries() -> dict[str, Any]:
    """The header of the honest file, to be bent."""
    file = save(tensors())
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length])


DATA = save(tensors())[-4 * (RANK * IN + OUT * RANK + 3) :]


def bent(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The honest file with its header changed."""
    header = entries()
    change(header)
    return raw(json.dumps(header).encode(), DATA)


def with_tensor(name: str, tensor: torch.Tensor | None, old: str | None = None) -> bytes:
    """The honest file with one tensor replaced, renamed or left out."""
    changed = tensors()
    if old:
        del changed[old]
    if tensor is not None:
        changed[name] = tensor
    return save(changed)


@dataclass(frozen=True)
class Hostile:
    """One file and the reason it must be refused with."""

    name: str
    data: bytes
    reason: Reason
    manifest: TensorManifest = MANIFEST

    def __repr__(self) -> str:
        """Without the bytes, which may be many."""
        return f"Hostile({self.name!r}, {len(self.data)} bytes, {self.reason})"

    @property
    def library_verdict(self) -> str:
        """What the safetensors library does with the file; it may need a minute for a large one."""
        if len(self.data) > _LIBRARY_LIMIT:
            return "not asked"
        try:
            deserialize(self.data)
        # The library raises its own error, KeyError, or what Rust's panics become.
        except BaseException as error:  # noqa: BLE001
            return f"refuses ({type(error).__name__})"
        return "**accepts**"


_LIBRARY_LIMIT = 5_500_000
"""bytes; the zero-size tensors above it cost the library seconds, a million of them a minute"""


P, M, N = Reason.INVALID_PAYLOAD, Reason.MANIFEST_MISMATCH, Reason.NOT_FINITE


def structural() -> Iterator[Hostile]:
    """Headers that are no strict safetensors header."""
    honest = save(tensors())
    text = json.dumps(entries()).encode()
    yield Hostile("empty", b"", P)
    yield Hostile("7-bytes", honest[:7], P)
    yield Hostile("8-bytes", honest[:8], P)
    yield Hostile("header-length-0", raw(b"", DATA), P)
    yield Hostile("header-length-above-file", struct.pack("<Q", 10**6) + honest[8:], P)
    yield Hostile("header-length-2^63", struct.pack("<Q", 2**63) + honest[8:], P)
    yield Hostile("header-length-2^64-1", struct.pack("<Q", 2**64 - 1) + honest[8:], P)
    yield Hostile("header-above-1-mib", raw(b"{" + b" " * (2 * 1024**2) + b"}"), P)
    yield Hostile("not-utf8", raw(b'{"\xff\xfe": 1}' + b" " * 40, DATA), P)
    yield Hostile("not-json", raw(b"{" + b"x" * 60, DATA), P)
    yield Hostile("array", raw(b"[]" + b" " * 60, DATA), P)
    yield Hostile("deep-nesting", raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), P)
    yield Hostile("leading-space", raw(b" " + text, DATA), P)
    yield Hostile("no-tensors", raw(b"{}" + b" " * 6), P)
    duplicate = text[:-1] + b", " + json.dumps({A: entries()[A]}).encode()[1:]
    yield Hostile("duplicate-name", raw(duplicate, DATA), P)
    field = text.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1)
    yield Hostile("duplicate-field", raw(field, DATA), P)
    yield Hostile("truncated-by-one", honest[:-1], P)
    yield Hostile("trailing-byte", honest + b"\0", P)
    yield Hostile("nan-literal", raw(text.replace(b"[0,", b"[NaN,", 1), DATA), P)
    yield Hostile("header-length-1", struct.pack("<Q", 1) + honest[8:], P)
    yield Hostile("header-cut", struct.pack("<Q", len(text) - 1) + text + DATA, P)
    yield Hostile("text-after-header", raw(text + b"{}", DATA), P)
    yield Hostile("byte-order-mark", raw(b"\xef\xbb\xbf" + text, DATA), P)
    yield Hostile("nul-after-header", raw(text + b"\0", DATA), P)
    yield Hostile("raw-control-character", raw(text.replace(b'"bias"', b'"bi\nas"'), DATA), P)
    yield Hostile("comment", raw(text + b"/**/", DATA), P)


def bombs() -> Iterator[Hostile]:
    """Files that cost more to parse than to send."""
    room = 1024**2 - 100
    yield Hostile("deep-objects", raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), P)
    yield Hostile("350000-objects", raw(b'{"a":[' + b"{}," * (room // 3) + b"1]}", DATA), P)
    yield Hostile("350000-strings", raw(b'{"a":[' + b'"",' * (room // 3) + b"1]}", DATA), M)
    yield Hostile("500000-numbers", raw(b'{"a":[' + b"1," * (room // 2) + b"1]}", DATA), M)
    yield Hostile("number-of-1-mb", raw(b'{"a":' + b"9" * room + b"}", DATA), P)
    longest = b",".join([b"9" * 4300] * (room // 4301))
    yield Hostile("240-longest-numbers", raw(b'{"a":[' + longest + b"]}", DATA), M)
    keys = b",".join(b'"%d":1' % i for i in range(100_000))
    yield Hostile("100000-keys", raw(b"{" + keys[:room].rpartition(b",")[0] + b"}", DATA), M)
    yield Hostile("metadata-5-mb", bent(lambda h: h.update(__metadata__={"x": "y" * 5_000_000})), P)
    for count in (100_000, 1_000_000):
        empty = b",".join(
            b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)
        )
        yield Hostile(f"{count}-zero-size-tensors", raw(b"{" + empty + b"}"), P)


def entry_level() -> Iterator[Hostile]:
    """Entries whose fields do not fit."""

    def offsets(name: str, begin: float, end: float) -> Callable[[dict[str, Any]], object]:
        return lambda h: h[name].update(data_offsets=[begin, end])

    size = len(DATA)
    yield Hostile("gap", bent(offsets(BIAS, size + 4, size + 16)), P)
    yield Hostile("overlap", bent(offsets(BIAS, 0, 12)), P)
    yield Hostile("reversed-offsets", bent(offsets(A, 48, 0)), P)
    yield Hostile("negative-offset", bent(offsets(A, -48, 0)), P)
    yield Hostile("fractional-offset", bent(offsets(A, 0.5, 48.5)), P)
    yield Hostile("huge-offset", bent(offsets(A, 2**62, 2**62 + 48)), P)
    yield Hostile("offset-beyond-64-bit", bent(offsets(A, 2**64, 2**64 + 48)), P)
    yield Hostile("three-offsets", bent(lambda h: h[A].update(data_offsets=[0, 48, 48])), P)
    yield Hostile("shape-against-offsets", bent(offsets(A, 0, 44)), P)
    yield Hostile("unknown-field", bent(lambda h: h[A].update(evil=1)), P)
    yield Hostile("missing-field", bent(lambda h: h[A].pop("shape")), P)
    yield Hostile("entry-no-object", bent(lambda h: h.update({A: 5})), P)
    yield Hostile("metadata-no-object", bent(lambda h: h.update(__metadata__=["x"])), P)
    yield Hostile("metadata-no-string", bent(lambda h: h.update(__metadata__={"x": 1})), P)
    yield Hostile("metadata-null", bent(lambda h: h.update(__metadata__=None)), P)
    doubled = b'{"__metadata__": {"x": "1", "x": "2"}, ' + json.dumps(entries()).encode()[1:]
    yield Hostile("metadata-key-twice", raw(doubled, DATA), P)
    yield Hostile(
        "metadata-half-surrogate", bent(lambda h: h.update(__metadata__={"x": "\ud800"})), P
    )
    yield Hostile("metadata-5-kib", bent(lambda h: h.update(__metadata__={"x": "y" * 5000})), P)
    yield Hostile("shape-product-overflow", bent(lambda h: h[A].update(shape=[2**33, 2**33])), M)
    yield Hostile("shape-negative", bent(lambda h: h[A].update(shape=[-2, -6])), M)
    yield Hostile("shape-fractional", bent(lambda h: h[A].update(shape=[2.0, 6])), P)
    yield Hostile("shape-boolean", bent(lambda h: h[BIAS].update(shape=[True, 3])), M)
    yield Hostile("shape-64-dimensions", bent(lambda h: h[A].update(shape=[1] * 62 + [2, 6])), M)
    yield Hostile(
        "shape-100000-dimensions", bent(lambda h: h[A].update(shape=[1] * 99_998 + [2, 6])), M
    )
    yield Hostile("zero-size", bent(lambda h: h[A].update(shape=[0, 6])), M)
    for dtype in ("F64", "C64", "BOOL", "F8_E8M0", "F8_E4M3", "I32", "f32", "X", ""):
        yield Hostile(f"dtype-{dtype}", bent(lambda h, d=dtype: h[A].update(dtype=d)), M)
    yield Hostile("dtype-number", bent(lambda h: h[A].update(dtype=7)), M)
    yield Hostile("dtype-null", bent(lambda h: h[A].update(dtype=None)), M)
    yield Hostile("shape-text", bent(lambda h: h[A].update(shape="2,6")), M)
    yield Hostile("shape-nested", bent(lambda h: h[A].update(shape=[[2], 6])), M)
    yield Hostile("shape-flat", bent(lambda h: h[A].update(shape=[12])), M)
    yield Hostile("shape-extra-dimension", bent(lambda h: h[A].update(shape=[2, 6, 1])), M)
    yield Hostile("offsets-text", bent(lambda h: h[A].update(data_offsets="0,48")), P)
    yield Hostile("offsets-swapped", bent(_swap_offsets), P)
    extra = {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}
    yield Hostile("zero-size-beside", bent(lambda h: h.update(evil=extra)), M)
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(15_000)}
    yield Hostile("15000-zero-size-tensors", raw(json.dumps(many).encode()), P)


def _swap_offsets(header: dict[str, Any]) -> None:
    """Bytes of one tensor given out as another's: lengths do not fit."""
    a, b = header[A], header[B]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def names() -> Iterator[Hostile]:
    """Tensors under other names."""
    a = tensors()[A]
    yield Hostile("missing", with_tensor("", None, old=A), M)
    yield Hostile("extra", with_tensor("evil", a), M)
    yield Hostile("adapter-name-kept", with_tensor(A.replace("A.", "A.default."), a, old=A), M)
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\windows",
        "a\0b",
        "\x1b[2J",
        "line\nbreak",
        "\u202eevil",
        "",
    ):
        yield Hostile(f"name-{name!r}", with_tensor(name, a, old=A), M)
    half = bent(lambda h: h.update({"\ud800": h.pop(A)}))
    yield Hostile("name-half-surrogate", half, M)
    yield Hostile("name-2-mb", with_tensor("n" * 2_000_000, a, old=A), P)
    yield Hostile("name-1-mb", with_tensor("n" * 1_000_000, a, old=A), M)
    swapped = tensors()
    swapped[A], swapped[B] = swapped[B], swapped[A]
    yield Hostile("a-and-b-swapped", save(swapped), M)
    yield Hostile("transposed", save({**tensors(), A: a.T.contiguous()}), M)
    for rank in (RANK - 1, RANK + 1):
        a, b = torch.zeros(rank, IN), torch.zeros(OUT, rank)
        yield Hostile(f"rank-{rank}", save({**tensors(), A: a, B: b}), M)
        yield Hostile(f"rank-{rank}-in-a-alone", save({**tensors(), A: a}), M)
    for sent, wanted in (("BF16", "F32"), ("F32", "BF16"), ("F16", "BF16"), ("BF16", "F16")):
        file = save(tensors(DataType(sent.lower()).torch_dtype))
        yield Hostile(f"{sent}-for-{wanted}", file, M, manifest(DataType(wanted.lower())))


def values() -> Iterator[Hostile]:
    """Values that are no numbers, first and last, in each element type."""
    for dtype in FLOATS:
        for bad in (float("nan"), float("inf"), float("-inf")):
            for name in (A, B, BIAS):
                for position in (0, -1):
                    changed = tensors(dtype.torch_dtype)
                    changed[name].view(-1)[position] = bad
                    label = f"{dtype.value}-{bad}-{name[-13:]}-{position}"
                    yield Hostile(label, save(changed), N, manifest(dtype))


FILES = (*structural(), *bombs(), *entry_level(), *names())
HOSTILE = (*FILES, *values())


def table(*, library: bool) -> str:
    """The files as a table; with what the library says of each, if asked."""
    head = ["file", "bytes", "refused with"] + ["safetensors 0.8"] * library
    rows = [head, ["---"] * len(head)]
    for case in FILES:
        row = [f"`{ascii(case.name)[1:-1]}`", f"{len(case.data)}", case.reason.value]
        rows.append(row + [case.library_verdict] * library)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table(library=True))  # noqa: T201
