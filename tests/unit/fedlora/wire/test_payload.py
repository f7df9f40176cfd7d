"""What is written around protobuf is what protobuf writes; what others write is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.proto.v1 import admin_pb2, federation_pb2, tensor_pb2
from fedlora.wire.payload import encode_chunk, encode_commit, reader_of, serialize
from fedlora.wire.stream import Chunk, Commit

CARRIERS = (
    federation_pb2.PushUpdateRequest,
    federation_pb2.PullAdapterResponse,
    admin_pb2.ExportAdapterResponse,
)
OFFSETS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))


@pytest.mark.parametrize("kind", CARRIERS)
@given(offset=OFFSETS, pieces=st.lists(st.binary(max_size=200), max_size=4))
def test_a_chunk_is_written_as_protobuf_writes_it_and_read_back(kind, offset, pieces):
    data = b"".join(pieces)
    written = encode_chunk(offset, pieces)
    message = kind.FromString(written)
    assert (message.chunk.offset, message.chunk.data) == (offset, data)
    theirs = kind(chunk=tensor_pb2.PayloadChunk(offset=offset, data=data)).SerializeToString()
    assert written == theirs or not data
    for form in (written, theirs):
        read = reader_of(kind)(form)
        assert isinstance(read, Chunk)
        assert (read.offset, bytes(read.data)) == (offset, data)


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384, 1024**2])
def test_a_chunk_is_read_where_it_lies(size: int):
    message = encode_chunk(5, [memoryview(b"x" * size)])
    chunk = reader_of(federation_pb2.PushUpdateRequest)(message)
    assert chunk.data.obj is message
    assert chunk.data == b"x" * size


@pytest.mark.parametrize("kind", CARRIERS)
@given(total_bytes=OFFSETS, digest=st.binary(max_size=40))
def test_a_commit_is_written_as_protobuf_writes_it_and_read_back(kind, total_bytes, digest):
    written = encode_commit(total_bytes, digest)
    commit = tensor_pb2.PayloadCommit(total_bytes=total_bytes, digest=digest)
    assert written == kind(commit=commit).SerializeToString()
    assert reader_of(kind)(written) == Commit(total_bytes, digest)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x12\x08\x12\x04data\x08\x05", id="data before the offset"),
        pytest.param(b"\x12\x09\x08\x85\x00\x12\x04data", id="a longer varint than needed"),
        pytest.param(b"\x12\x0a\x08\x07\x08\x05\x12\x04data", id="an offset twice"),
        pytest.param(b"\x12\x0a\x08\x05\x12\x04data\x18\x01", id="a field of tomorrow inside"),
        pytest.param(b"\x12\x08\x08\x05\x12\x04data\x20\x01", id="a field of tomorrow outside"),
        pytest.param(b"\x12\x02\x08\x05\x12\x06\x12\x04data", id="a chunk in two halves"),
    ],
)
def test_every_encoding_that_protobuf_takes_is_taken(message: bytes):
    expected = federation_pb2.PushUpdateRequest.FromString(message).chunk
    assert (expected.offset, expected.data) == (5, b"data")
    read = reader_of(federation_pb2.PushUpdateRequest)(message)
    assert (read.offset, bytes(read.data)) == (5, b"data")


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x12", b"\x12\x08\x08", b"\x12\x04\x12"]))
def test_whatever_comes_is_read_as_protobuf_reads_it(rest: bytes, start: bytes):
    kind, data = federation_pb2.PushUpdateRequest, start + rest
    try:
        message = kind.FromString(data)
    except Exception as refused:  # noqa: BLE001 - protobuf's own classes of errors are private
        with pytest.raises(type(refused)):
            reader_of(kind)(data)
        return
    read = reader_of(kind)(data)
    if message.WhichOneof("message") == "chunk":
        assert (read.offset, bytes(read.data)) == (message.chunk.offset, message.chunk.data)
    elif message.WhichOneof("message") == "commit":
        assert read == Commit(message.commit.total_bytes, message.commit.digest)
    else:
        assert read == message


def test_messages_and_bytes_that_are_encoded_already_are_sent():
    header = federation_pb2.PushUpdateRequest(header=federation_pb2.UpdateHeader(round=3))
    assert federation_pb2.PushUpdateRequest.FromString(serialize(header)) == header
    assert serialize(b"encoded") == b"encoded"
