"""Downloads of the global adapter: cut off, they go on; done, they are verified and kept by digest.

    <folder>/<digest>.safetensors     a whole adapter, its name its content
    <folder>/<digest of what>.part    the beginning of one, to be continued

A partial file is trusted for nothing: its bytes are hashed again together with those that follow,
and only a whole with the header's digest gets its final name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedlora.digests import DIGEST_BYTES, DIGEST_NAME, digest_file
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.channel import MAX_CHUNK_BYTES
from fedlora.runs.tasks import AdapterHeader
from fedlora.wire.convert import from_message
from fedlora.wire.stream import receive_payload

__all__ = ["AdapterFolder", "read_header"]

_KEPT = 2
"""adapters kept: the round's own and, after a restart, the one before"""

_WRONG_BYTES = frozenset({Reason.OFFSET_MISMATCH, Reason.TOO_LARGE, Reason.DIGEST_MISMATCH})
"""what came before cannot be continued; a stream that was merely cut can"""


class AdapterFolder:
    """Adapters of one worker on disk.

    Args:
        folder: of this worker alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def partial(self, *what: object) -> Path:
        """The partial file of a download; `what` says which bytes it is to hold."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("\x1f".join(map(str, what)).encode()).hexdigest()[:32]
        return self._folder / f"{name}.part"

    def find(self, header: AdapterHeader) -> Path | None:
        """The adapter of a header, if it is here and whole."""
        path = self._path(header)
        with suppress(OSError), path.open("rb") as file:
            if digest_file(file).digest() == header.digest:
                path.touch()
                return path
        return None

    def receive(self, header: AdapterHeader, messages: Iterator[object], partial: Path) -> Path:
        """Writes what follows a header to the end of `partial`, and gives the whole its name.

        Args:
            header: the first message of the stream.
            messages: the rest; their first chunk begins where the partial file ends.
            partial: from `partial`; empty or missing to begin with.

        Raises:
            FedLoraError: UPLOAD_INCOMPLETE if the stream ends early (what came stays);
                OFFSET_MISMATCH, TOO_LARGE or DIGEST_MISMATCH (the partial file is gone, so that
                the next attempt begins anew); OUT_OF_SPACE if the disk does not take it.
        """
        try:
            self._fill(header, messages, partial)
            path = self._path(header)
            partial.replace(path)
            self._prune()
        except FedLoraError as error:
            if error.reason in _WRONG_BYTES:
                partial.unlink()
            raise
        except OSError as error:
            raise FedLoraError(
                Reason.OUT_OF_SPACE,
                f"cannot write {partial}: {error.strerror or error}",
                hint="Make room, or set worker.cache_dir to a folder that has it",
            ) from error
        return path

    def _fill(self, header: AdapterHeader, messages: Iterator[object], partial: Path) -> None:
        with partial.open("a+b") as file:
            file.seek(0)
            so_far = digest_file(file)
            receive_payload(
                messages,
                total_bytes=header.total_bytes,
                digest=header.digest,
                max_chunk_bytes=MAX_CHUNK_BYTES,
                sink=file.write,
                start_offset=file.tell(),
                so_far=so_far,
            )

    def _path(self, header: AdapterHeader) -> Path:
        return self._folder / f"{header.digest.hex()}.safetensors"

    def _prune(self) -> None:
        whole = sorted(self._folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        for path in [*whole[:-_KEPT], *self._folder.glob("*.part")]:
            path.unlink()


def read_header(message: object) -> AdapterHeader:
    """The header that begins a download."""
    if not isinstance(message, pb.PullAdapterResponse) or not message.HasField("header"):
        raise FedLoraError(
            Reason.INTERNAL, f"a download begins with a header, got {type(message).__name__}"
        )
    header = from_message(message.header, AdapterHeader)
    if len(header.digest) != DIGEST_BYTES:
        raise FedLoraError(
            Reason.INTERNAL,
            f"a {DIGEST_NAME} has {DIGEST_BYTES} bytes, the header's {len(header.digest)}",
        )
    return header
