"""`python uploading_process.py ADDRESS FILE`: sends the messages of a file as one upload.

A process of its own, to be stopped and killed. It imports no more than it needs, to be there soon.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc

_LENGTH = struct.Struct("!I")


@contextmanager
def uploading(
    address: str, messages: Iterable[pb.PushUpdateRequest], file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The process while it uploads; killed in the end.

    Args:
        address: where it sends to.
        messages: what it sends.
        file: tells it the messages.
    """
    data = [message.SerializeToString() for message in messages]
    file.write_bytes(b"".join(_LENGTH.pack(len(d)) + d for d in data))
    with subprocess.Popen([sys.executable, __file__, address, str(file)]) as process:
        try:
            yield process
        finally:
            process.kill()


def _messages(data: bytes) -> Iterator[pb.PushUpdateRequest]:
    while data:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        yield pb.PushUpdateRequest.FromString(data[_LENGTH.size : end])
        data = data[end:]


if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = federation_pb2_grpc.FederationServiceStub(channel)
        stub.PushUpdate(_messages(Path(sys.argv[2]).read_bytes()), timeout=60)
