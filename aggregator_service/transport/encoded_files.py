"""Stored files as messages: each chunk is read and encoded once for all that are sent it together.

A round's workers fetch one adapter at about the same time. Whoever comes first has a chunk read;
the others are sent the same bytes. What is kept is bounded, however large the adapters are and
however many workers fetch them. An adapter within that bound is encoded once for everybody. Of a
larger one, who comes much later has chunks read again, from the page cache, which doubles what the
download costs the server (measured).
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aggregator_service.pace import Pace, PaceRules
from aggregator_service.shared_work import SharedWork
from fedlora.errors import FedLoraError, Reason
from fedlora.rpc.channel import MAX_CHUNK_BYTES
from fedlora.wire.payload import encode_chunk

__all__ = ["EncodedFiles"]

_KEPT_BYTES = 64 * 1024**2
"""of payload; an adapter of rank 16 for all attention projections of a 7B model has 34 to 67 MB"""


class EncodedFiles:
    """Files that never change, chunk by chunk.

    Args:
        chunk_bytes: payload bytes of a message.
        kept_bytes: of payload, in messages kept for the next that asks.
        pace: what readers are held to; None for nothing.
        on_sent: told the payload bytes of each message that is handed out.
    """

    def __init__(
        self,
        *,
        chunk_bytes: int = MAX_CHUNK_BYTES,
        kept_bytes: int = _KEPT_BYTES,
        pace: PaceRules | None = None,
        on_sent: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._pace = pace
        self._on_sent = on_sent
        self._messages: SharedWork[tuple[Path, int], bytes] = SharedWork(kept_bytes // chunk_bytes)

    async def messages(
        self, path: Path, *, start_offset: int, total_bytes: int
    ) -> AsyncIterator[bytes]:
        """The file from an offset to its end, as encoded messages with a `chunk`.

        Chunks end at multiples of the chunk's size wherever the first begins, so that a download
        that goes on shares them too.

        Raises:
            FedLoraError: STATE_CORRUPT if the file has become shorter, UPLOAD_TOO_SLOW for a reader
                that falls behind the least rate.
        """
        offset = start_offset
        clock = asyncio.get_running_loop().time
        pace = Pace(self._pace, total_bytes - start_offset) if self._pace else None
        while offset < total_bytes:
            end = min(offset - offset % self._chunk_bytes + self._chunk_bytes, total_bytes)
            message = self._message(path, offset, end)
            if end < total_bytes:
                # Read while this one is on its way.
                self._message(path, end, min(end + self._chunk_bytes, total_bytes))
            encoded = await asyncio.shield(message)
            began = clock()
            yield encoded
            self._on_sent(end - offset)
            if pace is not None:
                pace.took(end - offset, clock() - began)
            offset = end

    def _message(self, path: Path, start: int, end: int) -> asyncio.Future[bytes]:
        read = functools.partial(asyncio.to_thread, _read, path, start, end)
        return self._messages.begin((path, start), read)


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), end - start, start)
    if len(data) < end - start:
        raise FedLoraError(
            Reason.STATE_CORRUPT,
            f"stored adapter {path.name} ends at byte {start + len(data)}, expected {end} at least",
            hint="Restore the state directory from a backup",
        )
    return encode_chunk(start, (data,))
