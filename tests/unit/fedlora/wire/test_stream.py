from __future__ import annotations

import itertools
import random

import pytest

from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.wire.stream import Chunk, ChunkSequence, Commit, receive_payload

DATA = bytes(range(200)) * 5
CHUNK = 25


def messages(data: bytes = DATA) -> list[Chunk | Commit]:
    chunks = [Chunk(o, memoryview(data[o : o + CHUNK])) for o in range(0, len(data), CHUNK)]
    return [*chunks, Commit(len(data), new_digest(data).digest())]


def receive(stream, **changes) -> bytes:
    received = bytearray()
    arguments = {
        "total_bytes": len(DATA),
        "digest": new_digest(DATA).digest(),
        "max_chunk_bytes": CHUNK,
        "sink": received.extend,
    }
    receive_payload(iter(stream), **{**arguments, **changes})
    return bytes(received)


def test_a_whole_stream_is_received():
    assert receive(messages()) == DATA


def test_a_stream_goes_on_where_an_earlier_one_ended():
    so_far = new_digest(DATA[: 4 * CHUNK])
    assert receive(messages()[4:], start_offset=4 * CHUNK, so_far=so_far) == DATA[4 * CHUNK :]


@pytest.mark.parametrize("dropped", [1, 2, 3])
def test_a_stream_with_messages_missing_is_never_accepted(dropped: int):
    whole = messages()
    for gone in itertools.combinations(range(len(whole)), dropped):
        if dropped == 3 and gone[0] % 7:
            continue
        with pytest.raises(FedLoraError) as caught:
            receive([m for i, m in enumerate(whole) if i not in gone])
        assert caught.value.reason in (Reason.OFFSET_MISMATCH, Reason.UPLOAD_INCOMPLETE)


def test_no_other_order_of_the_messages_is_accepted():
    generator = random.Random(1)
    whole = messages()
    for _ in range(200):
        shuffled = generator.sample(whole, len(whole))
        if shuffled == whole:
            continue
        with pytest.raises(FedLoraError):
            receive(shuffled)


def test_repeated_oversized_and_foreign_messages_are_refused():
    whole = messages()
    header = pb.PullAdapterResponse(header=pb.AdapterHeader())
    for stream, reason in (
        ([whole[0], whole[0], *whole[1:]], Reason.OFFSET_MISMATCH),
        ([header, *whole], Reason.INVALID_ARGUMENT),
        (whole[:-1], Reason.UPLOAD_INCOMPLETE),
        ([], Reason.UPLOAD_INCOMPLETE),
        (messages(DATA[:-1] + b"x"), Reason.DIGEST_MISMATCH),
        (messages(DATA + b"x"), Reason.TOO_LARGE),
    ):
        with pytest.raises(FedLoraError) as caught:
            receive(stream)
        assert caught.value.reason is reason
    with pytest.raises(FedLoraError) as caught:
        receive(whole, max_chunk_bytes=CHUNK - 1)
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "commit",
    [
        Commit(len(DATA) - 1, new_digest(DATA).digest()),
        Commit(len(DATA), bytes(32)),
        Commit(0, b""),
    ],
)
def test_a_commit_that_contradicts_the_header_is_refused(commit: Commit):
    with pytest.raises(FedLoraError, match="the header names 1000 bytes") as caught:
        receive([*messages()[:-1], commit])
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_what_follows_the_commit_is_not_read():
    stream = iter([*messages(), pb.PullAdapterResponse(header=pb.AdapterHeader())])
    received = bytearray()
    receive_payload(
        stream,
        total_bytes=len(DATA),
        digest=new_digest(DATA).digest(),
        max_chunk_bytes=CHUNK,
        sink=received.extend,
    )
    assert received == DATA
    assert isinstance(next(stream), pb.PullAdapterResponse)


def test_a_refused_chunk_leaves_the_sequence_where_it_was():
    sequence = ChunkSequence(total_bytes=100, max_chunk_bytes=10, start_offset=20)
    for offset, size, reason in (
        (19, 5, Reason.OFFSET_MISMATCH),
        (21, 5, Reason.OFFSET_MISMATCH),
        (20, 0, Reason.INVALID_ARGUMENT),
        (20, 11, Reason.TOO_LARGE),
    ):
        with pytest.raises(FedLoraError) as caught:
            sequence.accept(offset, size)
        assert caught.value.reason is reason
        assert sequence.offset == 20
    for offset in range(20, 90, 10):
        sequence.accept(offset, 10)
    with pytest.raises(FedLoraError, match="100 bytes were declared") as caught:
        ChunkSequence(total_bytes=100, max_chunk_bytes=50, start_offset=60).accept(60, 41)
    assert caught.value.reason is Reason.TOO_LARGE
    sequence.accept(90, 10)
    assert sequence.offset == sequence.total_bytes
