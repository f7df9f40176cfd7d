"""Messages that carry a payload, written and read around the payload's own memory.

protobuf would copy every chunk three times: into the message, out of it, and into the bytes that
are sent or out of those that came. Here a chunk is copied once where it is written and not at all
where it is read. What is written is byte for byte what protobuf writes; what is read in any other
encoding is left to protobuf. So the generated stubs of any language will do on the other end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from fedlora.proto.v1 import tensor_pb2
from fedlora.wire.stream import Chunk, Commit

__all__ = ["Unreadable", "encode_chunk", "encode_commit", "reader_of", "serialize"]

M = TypeVar("M", bound=Message)

Unreadable = DecodeError
"""bytes that are no message of the kind that was expected, of a payload or not"""

# `chunk` and `commit` have one number in every message that carries a payload.
_CHUNK_TAG = 2 << 3 | 2
_COMMIT_TAG = 3 << 3 | 2
_OFFSET_TAG = tensor_pb2.PayloadChunk.OFFSET_FIELD_NUMBER << 3
_DATA_TAG = tensor_pb2.PayloadChunk.DATA_FIELD_NUMBER << 3 | 2

_MAX_VARINT_BYTES = 10


def encode_chunk(offset: int, pieces: Iterable[bytes | memoryview]) -> bytes:
    """A message whose `chunk` holds the pieces, joined, as the payload's bytes from `offset` on."""
    parts = list(pieces)
    size = sum(map(len, parts))
    inner = bytes((_OFFSET_TAG,)) + _varint(offset) if offset else b""
    inner += bytes((_DATA_TAG,)) + _varint(size)
    head = bytes((_CHUNK_TAG,)) + _varint(len(inner) + size) + inner
    return b"".join((head, *parts))


def encode_commit(total_bytes: int, digest: bytes) -> bytes:
    """A message whose `commit` ends a payload."""
    commit = tensor_pb2.PayloadCommit(total_bytes=total_bytes, digest=digest).SerializeToString()
    return bytes((_COMMIT_TAG,)) + _varint(len(commit)) + commit


def serialize(message: Message | bytes) -> bytes:
    """A serializer for gRPC that takes what is encoded already as it is."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def reader_of(kind: type[M]) -> Callable[[bytes], Chunk | Commit | M]:
    """A deserializer for gRPC.

    Args:
        kind: a message with `oneof message { ..., chunk, commit }`.

    Returns:
        From the bytes of a message to its chunk, its commit or, for anything else, the message.
    """

    def read(data: bytes) -> Chunk | Commit | M:
        if chunk := _read_chunk(data):
            return chunk
        message: Any = kind.FromString(data)
        which = message.WhichOneof("message")
        if which == "chunk":
            return Chunk(message.chunk.offset, memoryview(message.chunk.data))
        if which == "commit":
            return Commit(message.commit.total_bytes, message.commit.digest)
        return message  # type: ignore[no-any-return]

    return read


def _read_chunk(message: bytes) -> Chunk | None:
    """The chunk of a message in the canonical encoding; None for any other message."""
    try:
        if message[0] != _CHUNK_TAG:
            return None
        length, at = _read_varint(message, 1)
        offset, end = 0, at + length
        if message[at] == _OFFSET_TAG:
            offset, at = _read_varint(message, at + 1)
        if message[at] != _DATA_TAG:
            return None
        size, at = _read_varint(message, at + 1)
    except IndexError:
        return None
    if not at + size == end == len(message) or offset >= 2**64:
        return None
    return Chunk(offset, memoryview(message)[at:])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; IndexError where there is none."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = message[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise IndexError


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
