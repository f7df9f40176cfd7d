"""Framing of payloads: header, chunks without gap or overlap, commit.

Shared by both ends and both directions; sans-io, so it is tested without a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedlora.digests import DIGEST_NAME, Digest, new_digest
from fedlora.errors import FedLoraError, Reason

__all__ = ["Chunk", "ChunkSequence", "Commit", "receive_payload"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a payload, from `offset` on."""

    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a payload, with its size and digest."""

    total_bytes: int
    digest: bytes


class ChunkSequence:
    """Checks that chunks follow one another.

    Args:
        total_bytes: size of the whole payload.
        max_chunk_bytes: most bytes of one chunk.
        start_offset: where the stream begins.
    """

    def __init__(self, *, total_bytes: int, max_chunk_bytes: int, start_offset: int = 0) -> None:
        self.total_bytes = total_bytes
        self.offset = start_offset
        self._max_chunk = max_chunk_bytes

    def accept(self, offset: int, num_bytes: int) -> None:
        """Moves on by one chunk.

        Raises:
            FedLoraError: OFFSET_MISMATCH for a gap, overlap or repeat, TOO_LARGE for a chunk or
                a payload above what was declared, INVALID_ARGUMENT for an empty chunk.
        """
        if offset != self.offset:
            raise FedLoraError(
                Reason.OFFSET_MISMATCH, f"expected bytes from {self.offset} on, got {offset}"
            )
        if num_bytes == 0:
            raise FedLoraError(Reason.INVALID_ARGUMENT, f"the chunk at {offset} is empty")
        if num_bytes > self._max_chunk:
            raise FedLoraError(
                Reason.TOO_LARGE, f"a chunk may have {self._max_chunk} bytes, got {num_bytes}"
            )
        if offset + num_bytes > self.total_bytes:
            raise FedLoraError(
                Reason.TOO_LARGE,
                f"{self.total_bytes} bytes were declared, the chunk at {offset} goes to "
                f"{offset + num_bytes}",
            )
        self.offset += num_bytes


def receive_payload(
    messages: Iterable[object],
    *,
    total_bytes: int,
    digest: bytes,
    max_chunk_bytes: int,
    sink: Callable[[memoryview], object],
    start_offset: int = 0,
    so_far: Digest | None = None,
) -> None:
    """Receives what follows a header: chunks into `sink`, then the commit.

    Args:
        messages: chunks and a commit, as `fedlora.wire.payload` reads them.
        total_bytes: size in the header.
        digest: the header's, of the whole payload.
        max_chunk_bytes: most bytes of one chunk.
        sink: takes the bytes in order.
        start_offset: bytes that are here already.
        so_far: the digest that has taken those bytes.

    Raises:
        FedLoraError: OFFSET_MISMATCH, TOO_LARGE, UPLOAD_INCOMPLETE for a stream that ends
            without its commit, DIGEST_MISMATCH for other bytes than the header names.
    """
    found = so_far or new_digest()
    sequence = ChunkSequence(
        total_bytes=total_bytes, max_chunk_bytes=max_chunk_bytes, start_offset=start_offset
    )
    for message in messages:
        if isinstance(message, Chunk):
            sequence.accept(message.offset, len(message.data))
            found.update(message.data)
            sink(message.data)
        elif isinstance(message, Commit):
            if sequence.offset != total_bytes:
                raise FedLoraError(
                    Reason.UPLOAD_INCOMPLETE,
                    f"the commit came after {sequence.offset} of {total_bytes} bytes",
                )
            if (message.total_bytes, message.digest) != (total_bytes, digest):
                raise FedLoraError(
                    Reason.DIGEST_MISMATCH,
                    f"the header names {total_bytes} bytes with {DIGEST_NAME} {digest.hex()}, the "
                    f"commit {message.total_bytes} with {message.digest.hex()}",
                    hint="Fetch it again",
                )
            if found.digest() != digest:
                raise FedLoraError(
                    Reason.DIGEST_MISMATCH,
                    f"expected {DIGEST_NAME} {digest.hex()}, got {found.hexdigest()}",
                    hint="Fetch it again",
                )
            return
        else:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, "after the header come chunks and a commit, got another"
            )
    raise FedLoraError(
        Reason.UPLOAD_INCOMPLETE,
        f"the stream ended after {sequence.offset} of {total_bytes} bytes, without a commit",
    )
