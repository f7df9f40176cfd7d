"""One connection through the proxy: two sockets, and what goes from each to the other.

A piece travels at its link's pace and comes out whole; where the connection is cut, up to the very
byte. The ends of the two sockets, clean or not, travel like data.
"""

from __future__ import annotations

import asyncio
import enum
import random
import socket
import struct

from support.link import Link, Pacer, Way

__all__ = ["Connection", "Cut"]

_CHUNK_BYTES = 16 * 1024
_QUEUED_CHUNKS = 16
"""in flight per direction at most: beyond that the sender has to wait, as behind a full buffer"""


class Cut(enum.Enum):
    """How a connection ends."""

    RESET = "RST"
    CLEAN = "FIN"
    SILENT = "silence: the client's later bytes vanish, until the client itself is gone"


class Connection:
    """One client's connection and the one to the target that belongs to it.

    Args:
        link: what it runs over.
        name: seeds jitter and loss.
        limit: after how many bytes of the client, and how, it is cut; None for never.
    """

    def __init__(self, link: Link, name: str, limit: tuple[int, Cut] | None) -> None:
        self.bytes = dict.fromkeys(Way, 0)
        """forwarded so far"""
        self.is_open = True
        self.is_cut = False
        """its limit was reached"""
        self.pacers = {way: Pacer(random.Random(f"{name} {way.name}")) for way in Way}
        self._link = link
        self._limit = limit
        self._writers: tuple[asyncio.StreamWriter, ...] = ()

    async def run(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Forwards until both ends have ended, or either has broken."""
        self._writers = (client[1], server[1])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(client[0], server[1], Way.UP))
                group.create_task(self._forward(server[0], client[1], Way.DOWN))
            for writer in self._writers:
                writer.close()
                await writer.wait_closed()
        except* OSError:
            self.end(Cut.RESET)
        finally:
            for writer in self._writers:
                writer.transport.abort()
            self._ended()

    def end(self, how: Cut) -> None:
        """Ends both connections; `run` goes on until both ends have noticed."""
        for writer in self._writers if self.is_open else ():
            if writer.is_closing():
                continue  # its peer has broken it
            if how is Cut.RESET:
                end = writer.get_extra_info("socket")
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                # Not closed: with bytes unread the kernel would make a reset of it.
                writer.write_eof()
        self._ended()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_QUEUED_CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_in(reader, under_way, way))
            group.create_task(self._let_out(under_way, writer, way))

    async def _take_in(
        self,
        reader: asyncio.StreamReader,
        under_way: asyncio.Queue[tuple[float, bytes | None]],
        way: Way,
    ) -> None:
        """Queues what comes; b"" for a clean end and None for a reset, which travel like data."""
        data: bytes | None = b"more"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = None
            now = asyncio.get_running_loop().time()
            conditions = self._link.conditions[way]
            arrival = self.pacers[way].arrival(conditions, len(data or b""), now)
            await under_way.put((arrival, data))

    async def _let_out(
        self,
        under_way: asyncio.Queue[tuple[float, bytes | None]],
        writer: asyncio.StreamWriter,
        way: Way,
    ) -> None:
        while True:
            arrival, data = await under_way.get()
            await asyncio.sleep(arrival - asyncio.get_running_loop().time())
            await self._link.may_pass(way)
            if data is None:
                raise ConnectionResetError
            if not data:
                writer.write_eof()
                return
            if self.is_open:
                data = self._within_limit(data, way)
                writer.write(data)
                await writer.drain()
                self._count(len(data), way)

    def _within_limit(self, data: bytes, way: Way) -> bytes:
        if self._limit is None or way is Way.DOWN:
            return data
        return data[: self._limit[0] - self.bytes[Way.UP]]

    def _count(self, num_bytes: int, way: Way) -> None:
        self.bytes[way] += num_bytes
        if self._limit is not None and self.bytes[Way.UP] == self._limit[0] and not self.is_cut:
            self.is_cut = True
            if self._limit[1] is not Cut.SILENT:
                self.end(self._limit[1])
        self._link.notify()

    def _ended(self) -> None:
        self.is_open = False
        self._link.notify()
