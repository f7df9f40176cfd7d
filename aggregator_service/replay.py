"""An update that counts already, sent again: its acknowledgement, if the bytes are the same again.

A worker sends again what it was not told of. It may have asked in between how much is here, been
told of a part, and go on from there while the older stream commits; so the bytes may begin
anywhere, and what is not sent is read from the update's own file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aggregator_service.rounds.state import UpdateRecord
from aggregator_service.store.files import mapped_errors
from fedlora.digests import Digest, digest_file, new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Acknowledgement, UpdateHeader
from fedlora.wire.stream import Chunk, Commit

__all__ = ["acknowledge_again", "replay"]


async def replay(
    known: UpdateRecord,
    file: Path,
    worker: str,
    header: UpdateHeader,
    messages: AsyncIterator[Chunk | Commit],
) -> Acknowledgement:
    """Compares what a worker sends with an update that has its key.

    Args:
        known: the update.
        file: its bytes.
        worker: who sends.
        header: of what it sends; its start_offset may be any.
        messages: chunks and the commit.

    Raises:
        FedLoraError: ALREADY_EXISTS for another worker, other bytes, or bytes that do not follow;
            UPLOAD_INCOMPLETE for a stream without a commit; OFFSET_MISMATCH for one that does not
            begin at the beginning, where the update's file was put aside as damaged.
    """
    offset = header.start_offset
    refused = FedLoraError(
        Reason.ALREADY_EXISTS,
        f"key {header.idempotency_key[:100]!r} belongs to an update of other content",
        hint="Use a new idempotency key for new bytes",
    )
    if known.worker != worker or not offset <= known.total_bytes == header.total_bytes:
        raise refused
    digest = new_digest() if not offset else await asyncio.to_thread(_first_bytes, file, offset)
    while (message := await anext(messages, None)) is not None:
        if isinstance(message, Chunk):
            if message.offset != offset or len(message.data) > known.total_bytes - offset:
                raise refused
            offset += len(message.data)
            await asyncio.to_thread(digest.update, message.data)
            continue
        if digest.digest() == message.digest == bytes.fromhex(known.digest):
            return acknowledge_again(known)
        raise refused
    raise FedLoraError(
        Reason.UPLOAD_INCOMPLETE, f"the stream ended after {offset} bytes, without a commit"
    )


def acknowledge_again(known: UpdateRecord) -> Acknowledgement:
    """What was, or should have been, answered when the update was committed."""
    return Acknowledgement(
        update_id=known.update_id,
        total_bytes=known.total_bytes,
        digest=bytes.fromhex(known.digest),
        replayed=True,
    )


def _first_bytes(file: Path, num_bytes: int) -> Digest:
    """A digest that has taken the first bytes of an update."""
    try:
        with mapped_errors(), file.open("rb") as opened:
            return digest_file(opened, num_bytes)
    except FileNotFoundError as error:
        raise FedLoraError(
            Reason.OFFSET_MISMATCH,
            f"the {num_bytes} bytes before this stream are not here to be compared",
            hint="Send the update from its beginning",
        ) from error
