"""One upload on its way to become a blob.

What a client sends is checked while it comes: order of the chunks, header, every value, digest. On
disk lies a prefix of the payload at any time, so an upload can go on after a broken stream or a
killed server; opening it again reads that prefix once, to bring the checks to where it ends.

The disk writes along: left to itself Linux begins half a minute later, and the fsync at the commit
would wait for the whole file (measured: 30 ms for 64 MiB and 240 ms for 512 MiB, against 2 ms).

After an fsync that failed, nobody knows what is on the disk (Linux drops the dirty pages and the
next fsync succeeds), so such a file is thrown away and never resumed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from aggregator_service.store.files import (
    mapped_errors,
    rename_durably,
    start_writeback,
    sync_file,
    write_all,
)
from fedlora.digests import DIGEST_NAME, new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import TensorManifest
from fedlora.tensors.verifier import PayloadVerifier
from fedlora.wire.stream import ChunkSequence

__all__ = ["UploadWriter"]

_BLOCK_BYTES = 1024**2

_WRITEBACK_BYTES = 2 * 1024**2
"""so much is handed to the disk at a time, and at most so much is left for the commit's fsync"""


class UploadWriter:
    """Writes one upload in order; ends with one of commit, suspend or discard.

    Its methods may be called from several threads: a stream that is cancelled ends the upload
    while its last chunk is still being written.

    Args:
        path: the partial file; goes on where it ends.
        total_bytes: declared size.
        manifest: the tensors the payload must hold.
        blob_path: from the digest, hexadecimal, to the blob's place.
        on_end: called once, when the partial file may be opened by somebody else.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a size that no such payload has, OUT_OF_SPACE,
            DISK_FAILED.
    """

    def __init__(
        self,
        path: Path,
        *,
        total_bytes: int,
        manifest: TensorManifest,
        blob_path: Callable[[str], Path],
        on_end: Callable[[], None],
    ) -> None:
        self._path, self._total, self._manifest = path, total_bytes, manifest
        self._blob_path, self._on_end = blob_path, on_end
        self._lock = threading.Lock()
        self._restart()
        with mapped_errors():
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._handle: int | None = os.open(path, flags, 0o644)
            try:
                self._replay(self._handle)
            except BaseException:
                os.close(self._handle)
                raise
        self._handed_over = self.offset

    @property
    def offset(self) -> int:
        """Bytes taken so far; where the stream goes on."""
        return self._sequence.offset

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Takes the next bytes: one look at every value, one digest, one write.

        Raises:
            FedLoraError: OFFSET_MISMATCH, TOO_LARGE or INVALID_ARGUMENT for a chunk that does not
                follow: nothing has changed. INVALID_PAYLOAD, MANIFEST_MISMATCH or NOT_FINITE for
                wrong bytes: the upload is gone. OUT_OF_SPACE or DISK_FAILED for the disk: what
                came before is kept. UPLOAD_INCOMPLETE if the upload has ended.
        """
        with self._lock:
            handle = self._open_handle()
            self._sequence.accept(offset, len(data))
            try:
                self._verifier.feed(data)
            except FedLoraError:
                self._remove()
                self._end(handle)
                raise
            self._digest.update(data)
            try:
                with mapped_errors():
                    write_all(handle, data)
            except BaseException:
                # The file may end in the middle of this chunk: only a new replay knows.
                self._end(handle)
                raise
            if self.offset - self._handed_over >= _WRITEBACK_BYTES:
                start_writeback(handle, self._handed_over, self.offset - self._handed_over)
                self._handed_over = self.offset

    def commit(
        self, total_bytes: int, digest: bytes, *, inspect: Callable[[Path], None] | None = None
    ) -> str:
        """Makes the upload a blob, durable on return; returns its digest, hexadecimal.

        Args:
            total_bytes: of the payload, as the client ended it.
            digest: of the payload.
            inspect: a last look at the whole file, before it is a blob; what it raises ends the
                upload.

        Raises:
            FedLoraError: UPLOAD_INCOMPLETE (it can go on), DIGEST_MISMATCH, OUT_OF_SPACE or
                DISK_FAILED (it is gone).
        """
        with self._lock:
            handle = self._open_handle()
            self._verifier.finish()
            try:
                found = self._check_digest(total_bytes, digest)
                if inspect is not None:
                    inspect(self._path)
                with mapped_errors():
                    sync_file(handle)
                    rename_durably(self._path, self._blob_path(found))
            except BaseException:
                self._remove()
                raise
            finally:
                self._end(handle)
            return found

    def suspend(self) -> None:
        """Keeps what has come, durably, to be resumed; nothing happens if the upload has ended."""
        with self._lock:
            if self._handle is None:
                return
            try:
                os.fsync(self._handle)
                if os.fstat(self._handle).st_size == 0:
                    self._remove()
            except OSError:
                self._remove()
            finally:
                self._end(self._handle)

    def discard(self) -> None:
        """Leaves nothing behind; nothing happens if the upload has ended."""
        with self._lock:
            if self._handle is not None:
                self._remove()
                self._end(self._handle)

    # --- steps ---------------------------------------------------------------------------

    def _restart(self) -> None:
        self._digest = new_digest()
        self._verifier = PayloadVerifier(self._manifest, self._total)
        self._sequence = ChunkSequence(total_bytes=self._total, max_chunk_bytes=self._total)

    def _check_digest(self, total_bytes: int, digest: bytes) -> str:
        found = self._digest.digest()
        if found != digest or total_bytes != self._total:
            raise FedLoraError(
                Reason.DIGEST_MISMATCH,
                f"expected {total_bytes} bytes with {DIGEST_NAME} {digest.hex()}, got "
                f"{self.offset} with {found.hex()}",
                hint="Send the update again",
            )
        return found.hex()

    def _replay(self, handle: int) -> None:
        """Brings the checks to where the file ends."""
        try:
            while data := os.pread(handle, _BLOCK_BYTES, self._sequence.offset):
                self._sequence.accept(self._sequence.offset, len(data))
                self._verifier.feed(data)
                self._digest.update(data)
        except FedLoraError:
            # What is here is no beginning of this payload, such as one of another size.
            os.ftruncate(handle, 0)
            self._restart()

    def _open_handle(self) -> int:
        if self._handle is None:
            raise FedLoraError(
                Reason.UPLOAD_INCOMPLETE,
                "the upload has ended",
                hint="Resume it in a new stream",
            )
        return self._handle

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _end(self, handle: int) -> None:
        self._handle = None
        with contextlib.suppress(OSError):
            os.close(handle)
        self._on_end()
