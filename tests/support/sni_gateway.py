"""A gateway that passes TLS on: it reads the host name that a client asks for, and nothing else.

What a Gateway with `mode: Passthrough` and a TLSRoute do in a cluster. It has no key and no
certificate, so what goes through it can only be opened at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Self

__all__ = ["SniGateway"]

_FIRST_BYTES = 16384
"""of a connection; a ClientHello is in one TLS record"""


class SniGateway:
    """Stands at a free loopback port; an async context manager.

    Args:
        routes: host name -> host:port that it is led to; others are turned away.
    """

    def __init__(self, routes: Mapping[str, str]) -> None:
        self._routes = routes
        self.passed: list[str] = []
        """host names that were led on"""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            hello = await reader.read(_FIRST_BYTES)
            host = _host_in(hello)
            if host in self._routes:
                self.passed.append(host)
                await _lead(hello, self._routes[host], reader, writer)
        finally:
            await _closed(writer)


async def _lead(
    hello: bytes, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Copies both ways until both ends have ended."""
    server_reader, server_writer = await asyncio.open_connection(*target.rsplit(":", 1))
    try:
        server_writer.write(hello)
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, server_writer))
            both.create_task(_copy(server_reader, writer))
    finally:
        await _closed(server_writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def _host_in(hello: bytes) -> str:
    """The server name of a ClientHello; empty if it has none."""
    asked: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: asked.append(name or "") or None
    incoming = ssl.MemoryBIO()
    incoming.write(hello)
    # Without a certificate it goes no further than the name.
    with contextlib.suppress(ssl.SSLError):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return asked[0] if asked else ""
