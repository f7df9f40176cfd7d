from __future__ import annotations

import hashlib
import itertools
import random

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import tensor_pb2
from fedlora.wire.stream import receive_payload

DATA = bytes(range(200)) * 5
CHUNK = 25


def messages(data: bytes = DATA) -> list[pb.PullAdapterResponse]:
    chunks = [
        pb.PullAdapterResponse(chunk=tensor_pb2.PayloadChunk(offset=o, data=data[o : o + CHUNK]))
        for o in range(0, len(data), CHUNK)
    ]
    digest = hashlib.sha256(data).digest()
    end = tensor_pb2.PayloadCommit(total_bytes=len(data), sha256=digest)
    return [*chunks, pb.PullAdapterResponse(commit=end)]


def receive(stream, **changes) -> bytes:
    received = bytearray()
    arguments = {
        "total_bytes": len(DATA),
        "sha256": hashlib.sha256(DATA).digest(),
        "max_chunk_bytes": CHUNK,
        "sink": received.extend,
    }
    receive_payload(iter(stream), **{**arguments, **changes})
    return bytes(received)


def test_a_whole_stream_is_received():
    assert receive(messages()) == DATA


def test_a_stream_goes_on_where_an_earlier_one_ended():
    digest = hashlib.sha256(DATA[: 4 * CHUNK])
    assert receive(messages()[4:], start_offset=4 * CHUNK, digest=digest) == DATA[4 * CHUNK :]


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
