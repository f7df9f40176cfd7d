"""A TCP proxy that a test makes slow, cuts, freezes and closes, while real programs talk through.

It lives in the test's event loop, on a free loopback port. What it can do to them:

* `link.set` makes directions slow, jittery or lossy, `link.hold` lets nothing out of them: both
  ends keep their connections, and new ones are accepted (half-open);
* `cut` ends all connections, `cut_after` the next ones, each after that many bytes of its client;
* `partition` holds both directions and turns new connections away; `heal` ends that.

What was held back comes out after `heal`, as from a network that works again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from support.link import Link, Way
from support.proxied_connection import Connection, Cut

__all__ = ["FaultProxy"]


class FaultProxy:
    """Stands between clients and `target`; an async context manager.

    Args:
        target: host:port of the server.
        seed: of jitter and loss.
    """

    def __init__(self, target: str, *, seed: int = 0) -> None:
        self.seed = seed
        self.target = target
        self.link = Link()
        self.connections: list[Connection] = []
        """all that were ever accepted, oldest first"""
        self.num_refused = 0
        self._limits: deque[tuple[int, Cut]] = deque()
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- faults ----------------------------------------------------------------------------

    def cut(self, how: Cut = Cut.RESET) -> None:
        """Ends every connection that is open."""
        for connection in self.connections:
            connection.end(how)

    def cut_after(self, *num_bytes: int, how: Cut = Cut.RESET) -> None:
        """Each of the next connections ends once so many bytes have come from its client."""
        self._limits.extend((limit, how) for limit in num_bytes)

    def partition(self) -> None:
        """Holds all connections and turns new ones away."""
        self.link.hold()
        self._refusing = True

    def heal(self) -> None:
        """What was held back comes out, and new connections are welcome."""
        self._refusing = False
        self.link.release()

    # --- what a test looks at --------------------------------------------------------------

    def forwarded(self, way: Way) -> int:
        """Bytes over all connections."""
        return sum(c.bytes[way] for c in self.connections)

    @property
    def num_cut(self) -> int:
        """Connections that have reached their limit."""
        return sum(c.is_cut for c in self.connections)

    @property
    def num_stalls(self) -> int:
        """Pieces that were "lost"."""
        return sum(pacer.num_stalls for c in self.connections for pacer in c.pacers.values())

    async def wait_until(self, condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
        """Returns once the condition holds; it is looked at after whatever happens here."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self.link.next_change()

    # --- connections -----------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            if self._refusing:
                raise ConnectionRefusedError
            server = await asyncio.open_connection(host, int(port))
        except OSError:
            # Away, or held to be: either way the client is told like by a closed port.
            self.num_refused += 1
            writer.transport.abort()
            self.link.notify()
            return
        limit = self._limits.popleft() if self._limits else None
        connection = Connection(self.link, f"{self.seed} {len(self.connections)}", limit)
        self.connections.append(connection)
        await connection.run((reader, writer), server)
