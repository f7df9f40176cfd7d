"""The clients of what limits any transport: bytes over a bare socket and a bare gRPC stream.

Messages are as long as the chunks of a payload. Nothing is read from or written to a disk, nothing
is hashed or checked.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import grpc

from fedlora.rpc.channel import MAX_CHUNK_BYTES

__all__ = ["STREAM_IN", "STREAM_OUT", "send_to_socket", "send_to_stream", "take_from_stream"]

STREAM_IN = "/floor/In"
"""takes a stream of raw bytes and answers with their number"""

STREAM_OUT = "/floor/Out"
"""is asked for a number of bytes and streams as many"""


def send_to_socket(address: str, num_bytes: int) -> dict[str, float]:
    """Sends zeros and waits until the other side has read them all."""
    host, port = address.split(":")
    block = bytes(MAX_CHUNK_BYTES)
    with socket.create_connection((host, int(port))) as connection:
        began = time.perf_counter()
        for start in range(0, num_bytes, len(block)):
            connection.sendall(block[: num_bytes - start])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return {"push_began": began, "push_ended": time.perf_counter(), "bytes_up": num_bytes}


def send_to_stream(address: str, num_bytes: int) -> dict[str, float]:
    """The same in one client stream of raw messages."""
    block = bytes(MAX_CHUNK_BYTES)

    def messages() -> Iterator[bytes]:
        for start in range(0, num_bytes, len(block)):
            yield block[: num_bytes - start]

    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result()
        began = time.perf_counter()
        answer = channel.stream_unary(STREAM_IN)(messages())
        ended = time.perf_counter()
    assert int(answer) == num_bytes
    return {"push_began": began, "push_ended": ended, "bytes_up": num_bytes}


def take_from_stream(address: str, num_bytes: int) -> dict[str, float]:
    """The other direction: one server stream of raw messages."""
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result()
        began = time.perf_counter()
        taken = sum(len(m) for m in channel.unary_stream(STREAM_OUT)(b"%d" % num_bytes))
        ended = time.perf_counter()
    assert taken == num_bytes
    return {"pull_began": began, "pull_ended": ended, "bytes_down": num_bytes}
