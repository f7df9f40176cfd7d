"""The servers of the floors: a socket and a grpc.aio server that throw away what they are sent.

    python floor_server.py socket|stream

Prints its address and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator

import grpc
from transports.floor_clients import STREAM_IN, STREAM_OUT

from fedlora.rpc.channel import MAX_CHUNK_BYTES


def serve_socket() -> None:
    """A thread per connection, each with one buffer that is filled again and again."""
    listener = socket.create_server(("127.0.0.1", 0))
    print("{}:{}".format(*listener.getsockname()), flush=True)

    def drain(connection: socket.socket) -> None:
        buffer = bytearray(MAX_CHUNK_BYTES)
        with connection:
            while connection.recv_into(buffer):
                pass
            connection.sendall(b".")

    while True:
        threading.Thread(target=drain, args=(listener.accept()[0],), daemon=True).start()


class _Raw(grpc.GenericRpcHandler):
    """Methods whose messages are bytes as they are."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == STREAM_IN:
            return grpc.stream_unary_rpc_method_handler(self._take)
        if details.method == STREAM_OUT:
            return grpc.unary_stream_rpc_method_handler(self._give)
        return None

    async def _take(self, messages: AsyncIterator[bytes], _: object) -> bytes:
        taken = 0
        async for message in messages:
            taken += len(message)
        return b"%d" % taken

    async def _give(self, request: bytes, _: object) -> AsyncIterator[bytes]:
        total, block = int(request), bytes(MAX_CHUNK_BYTES)
        for start in range(0, total, len(block)):
            yield block[: total - start]


async def serve_stream() -> None:
    """grpc.aio as it comes, without any option."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Raw(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "socket":
        serve_socket()
    else:
        asyncio.run(serve_stream())
