"""The strict header, field by field; whole hostile files are in tests/adversarial."""

from __future__ import annotations

import json
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.header import (
    LENGTH_BYTES,
    check_size,
    encode_header,
    header_limit,
    parse_header,
    parse_length,
)
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

PAIR = TensorManifest(
    tensors=(
        TensorInfo(name="a", shape=(2, 3), dtype=DataType.F32),
        TensorInfo(name="b", shape=(5,), dtype=DataType.BF16),
    )
)


def text(manifest: TensorManifest, **entries: object) -> bytes:
    """The canonical header with entries replaced."""
    header = json.loads(encode_header(manifest)[LENGTH_BYTES:])
    return json.dumps({**header, **entries}).encode()


def total(header: bytes, manifest: TensorManifest = PAIR) -> int:
    return LENGTH_BYTES + len(header) + manifest.data_bytes


def refusal(header: bytes, total_bytes: int | None = None) -> FedLoraError:
    with pytest.raises(FedLoraError) as caught:
        parse_header(header, PAIR, total(header) if total_bytes is None else total_bytes)
    return caught.value


def test_a_header_says_where_each_tensor_lies():
    header = encode_header(PAIR, {"format": "pt"})[LENGTH_BYTES:]
    parsed = parse_header(header, PAIR, total(header))
    begin = LENGTH_BYTES + len(header)
    assert [(s.info.name, s.begin, s.end) for s in parsed.spans] == [
        ("a", begin, begin + 24),
        ("b", begin + 24, begin + 34),
    ]
    assert parsed.metadata == {"format": "pt"}


def test_data_may_lie_in_any_order_as_long_as_it_is_without_gap():
    swapped = text(
        PAIR,
        a={"dtype": "F32", "shape": [2, 3], "data_offsets": [10, 34]},
        b={"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]},
    )
    parsed = parse_header(swapped, PAIR, total(swapped))
    assert [s.info.name for s in parsed.spans] == ["b", "a"]


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
infos = st.builds(
    TensorInfo,
    name=names.filter(lambda n: n != "__metadata__"),
    shape=st.lists(st.integers(1, 50), max_size=3).map(tuple),
    dtype=st.sampled_from(DataType),
)
manifests = st.lists(infos, min_size=1, max_size=8, unique_by=lambda t: t.name).map(
    lambda tensors: TensorManifest(tensors=tuple(tensors))
)


@settings(max_examples=200, deadline=None)
@given(manifests, st.dictionaries(names, names, max_size=3))
def test_whatever_is_encoded_is_read_back(manifest: TensorManifest, metadata: dict[str, str]):
    head = encode_header(manifest, metadata)
    assert len(head) % 8 == 0
    size = len(head) + manifest.data_bytes
    check_size(size, manifest)
    length = parse_length(head, total_bytes=size, limit=header_limit(manifest))
    parsed = parse_header(head[LENGTH_BYTES : LENGTH_BYTES + length], manifest, size)
    assert {s.info for s in parsed.spans} == set(manifest.tensors)
    assert parsed.metadata == metadata
    # Wide elements first, so each tensor is aligned where the file's beginning is.
    assert all(s.begin % s.info.dtype.item_bytes == 0 for s in parsed.spans)


@pytest.mark.parametrize(
    ("header", "words", "reason"),
    [
        (b" " + text(PAIR), "begins with b' ', expected b'{'", Reason.INVALID_PAYLOAD),
        (b"{" + b"x" * 20, "no strict JSON", Reason.INVALID_PAYLOAD),
        (text(PAIR)[:-1] + b', "b": 1}', "'b' occurs twice", Reason.INVALID_PAYLOAD),
        (text(PAIR, c=1), "1 tensors are not in the run, first 'c'", Reason.MANIFEST_MISMATCH),
        (b'{"b": 1}', "1 tensors are missing, first 'a'", Reason.MANIFEST_MISMATCH),
        (
            text(PAIR, b={"dtype": "F16", "shape": [5], "data_offsets": [24, 34]}),
            "tensor 'b': expected BF16, got 'F16'",
            Reason.MANIFEST_MISMATCH,
        ),
        (
            text(PAIR, a={"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}),
            r"tensor 'a': expected shape \[2, 3\], got \[3, 2\]",
            Reason.MANIFEST_MISMATCH,
        ),
        (
            text(PAIR, a={"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}),
            "tensor 'a': 20 bytes of data for 24",
            Reason.INVALID_PAYLOAD,
        ),
        (
            text(PAIR, b={"dtype": "BF16", "shape": [5], "data_offsets": [26, 36]}),
            "tensor 'b' begins at byte [0-9]+, expected [0-9]+",
            Reason.INVALID_PAYLOAD,
        ),
        (text(PAIR, __metadata__={"k": 1}), "no object of strings", Reason.INVALID_PAYLOAD),
        (
            text(PAIR, __metadata__={"k": "v" * 4096}),
            "4097 bytes, at most 4096",
            Reason.INVALID_PAYLOAD,
        ),
    ],
)
def test_an_error_names_the_thing_what_was_expected_and_what_was_got(
    header: bytes, words: str, reason: Reason
):
    error = refusal(header)
    assert error.reason is reason
    assert re.search(words, str(error)), str(error)


def test_metadata_of_4_kib_is_allowed():
    header = text(PAIR, __metadata__={"k": "v" * 4095})
    assert len(parse_header(header, PAIR, total(header)).metadata["k"]) == 4095


def test_the_data_must_end_where_the_file_ends():
    header = text(PAIR)
    for wrong in (-1, 1):
        error = refusal(header, total(header) + wrong)
        assert error.reason is Reason.INVALID_PAYLOAD
        assert f"the file at {total(header) + wrong}" in str(error)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (text(PAIR, c=1, __metadata__=7), Reason.MANIFEST_MISMATCH),
        (
            text(PAIR, a={"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]}),
            Reason.MANIFEST_MISMATCH,
        ),
        (
            text(PAIR, b={"dtype": "BF16", "shape": [6], "data_offsets": [24, 36]}),
            Reason.MANIFEST_MISMATCH,
        ),
        (
            text(PAIR, b={"dtype": "F16", "shape": [5], "data_offsets": [24, 34], "x": 1}, c=1),
            Reason.MANIFEST_MISMATCH,
        ),
    ],
    ids=["names, metadata", "dtype, offsets", "shape, offsets", "names, fields"],
)
def test_of_two_broken_rules_the_earlier_is_reported(header: bytes, reason: Reason):
    assert refusal(header).reason is reason


def test_a_manifest_with_an_empty_tensor_admits_no_file():
    empty = TensorManifest(tensors=(TensorInfo(name="a", shape=(0, 3), dtype=DataType.F32),))
    header = encode_header(empty)[LENGTH_BYTES:]
    with pytest.raises(FedLoraError, match=r"shape \[0, 3\] has no elements") as caught:
        parse_header(header, empty, LENGTH_BYTES + len(header))
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


def test_a_name_with_braces_is_a_name_like_any_other():
    odd = TensorManifest(
        tensors=tuple(
            TensorInfo(name="{" * 3000 + str(i), shape=(1,), dtype=DataType.F32) for i in range(3)
        )
    )
    header = encode_header(odd)[LENGTH_BYTES:]
    assert len(parse_header(header, odd, total(header, odd)).spans) == 3


def test_the_limit_of_a_header_is_1_mib_or_twice_what_the_run_needs():
    assert header_limit(PAIR) == 1024**2
    many = TensorManifest(
        tensors=tuple(
            TensorInfo(name=f"layer.{i}.lora_A.weight", shape=(8, 64), dtype=DataType.F32)
            for i in range(20_000)
        )
    )
    needed = len(encode_header(many))
    assert needed > 1024**2
    assert header_limit(many) == 2 * needed
    header = encode_header(many)[LENGTH_BYTES:]
    parse_header(header, many, total(header, many))


@pytest.mark.parametrize("length", [0, 1, 1001, 2**63, 2**64 - 1])
def test_a_length_that_no_header_has_is_refused(length: int):
    with pytest.raises(FedLoraError, match=f"the header declares {length} bytes") as caught:
        parse_length(struct.pack("<Q", length), total_bytes=2000, limit=1000)
    assert caught.value.reason is Reason.INVALID_PAYLOAD


@pytest.mark.parametrize("length", [2, 1000])
def test_a_length_within_the_limit_is_taken(length: int):
    head = struct.pack("<Q", length)
    assert parse_length(head, total_bytes=length + LENGTH_BYTES, limit=1000) == length
    with pytest.raises(FedLoraError):
        parse_length(head, total_bytes=length + LENGTH_BYTES - 1, limit=1000)


def test_the_size_alone_refuses_what_can_be_no_payload():
    least, most = 8 + 2 + 34, 8 + 1024**2 + 34
    for size in (least, most):
        check_size(size, PAIR)
    for size in (0, least - 1, most + 1, 2**64):
        with pytest.raises(FedLoraError, match=f"{size} bytes.*{least} to {most}") as caught:
            check_size(size, PAIR)
        assert caught.value.reason is Reason.INVALID_PAYLOAD
