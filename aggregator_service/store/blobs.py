"""Adapters and updates as files named by their digest.

    root/blobs/ab/<sha256>       whole, durable, never changed
    root/uploads/<key>.part      an upload so far; the key is a digest of the server's own making
    root/tmp/                    files in the making; swept at start
    root/quarantine/             blobs that no longer have their digest

A file gets its final name in the order: file synced, renamed, directory synced. Only then does the
caller write of it to the database, and only then is anybody told. No name here contains anything a
client has written. All methods block; they are called from threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import TensorManifest
from fedlora.tensors.verifier import PayloadVerifier
from fedlora.wire.stream import ChunkSequence

__all__ = ["BlobStore", "UploadWriter"]

_BLOCK_BYTES = 1024**2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class BlobStore:
    """Content-addressed files below one folder.

    Args:
        root: the state directory; created if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self._blobs, self._uploads = root / "blobs", root / "uploads"
        self._tmp, self._quarantine = root / "tmp", root / "quarantine"
        for folder in (self._blobs, self._uploads, self._tmp, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._tmp.iterdir():
            leftover.unlink()
        self._open: set[str] = set()
        self._lock = threading.Lock()

    # --- finished files ------------------------------------------------------------------

    def path(self, sha256: str) -> Path:
        """Where the blob of a digest lies or would lie."""
        return self._blobs / sha256[:2] / sha256

    def verify(self, sha256: str) -> None:
        """Reads a blob and compares its digest.

        Raises:
            FedLoraError: STATE_CORRUPT if it is missing or has other bytes; it is then put
                aside, so that it can be looked at but never used.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                found = _digest(file).hexdigest()
        except FileNotFoundError:
            found = "no file"
        if found != sha256:
            if path.exists():
                path.replace(self._quarantine / f"{sha256}.{secrets.token_hex(4)}")
            raise FedLoraError(
                Reason.STATE_CORRUPT,
                f"stored adapter {sha256} is damaged: found {found}",
                hint="Restore the state directory from a backup",
            )

    def new_temporary(self) -> Path:
        """A path for a file in the making, on the same file system as the blobs."""
        return self._tmp / secrets.token_hex(16)

    def adopt(self, path: Path) -> str:
        """Makes a finished file a blob; returns its digest, hexadecimal."""
        with _mapped_errors(), path.open("rb+") as file:
            sha256 = _digest(file).hexdigest()
            os.fsync(file.fileno())
        self._rename(path, sha256)
        return sha256

    # --- uploads -------------------------------------------------------------------------

    def open_upload(self, key: str, *, total_bytes: int, manifest: TensorManifest) -> UploadWriter:
        """Begins or resumes an upload.

        Args:
            key: hexadecimal digest that names the upload.
            total_bytes: its declared size.
            manifest: the tensors it must hold.

        Raises:
            FedLoraError: UNAVAILABLE while another stream writes it; OUT_OF_SPACE.
        """
        with self._lock:
            if key in self._open:
                raise FedLoraError(
                    Reason.UNAVAILABLE,
                    "another stream of this upload is still open",
                    hint="Try again when the server has given it up",
                )
            self._open.add(key)
        try:
            return UploadWriter(self, key, total_bytes=total_bytes, manifest=manifest)
        except BaseException:
            self._close(key)
            raise

    def durable_bytes(self, key: str) -> int:
        """How much of an upload is here; 0 if nothing is."""
        try:
            return self._part(key).stat().st_size
        except FileNotFoundError:
            return 0

    # --- for UploadWriter ----------------------------------------------------------------

    def _part(self, key: str) -> Path:
        return self._uploads / f"{key}.part"

    def _close(self, key: str) -> None:
        with self._lock:
            self._open.discard(key)

    def _rename(self, path: Path, sha256: str) -> None:
        target = self.path(sha256)
        with _mapped_errors():
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                _sync_folder(self._blobs)
            path.replace(target)
            _sync_folder(target.parent)


class UploadWriter:
    """One upload, written in order. Ends with exactly one of commit, suspend or discard."""

    def __init__(
        self, store: BlobStore, key: str, *, total_bytes: int, manifest: TensorManifest
    ) -> None:
        self._store = store
        self._key = key
        self._path = store._part(key)  # noqa: SLF001 - two halves of one thing
        self._total = total_bytes
        self._manifest = manifest
        self._file: BinaryIO | None = None
        self._restart()
        with _mapped_errors():
            self._file = self._path.open("ab+")
            try:
                self._replay()
            except FedLoraError:
                # What is here is no beginning of this payload.
                self._file.truncate(0)
                self._restart()

    @property
    def offset(self) -> int:
        """Bytes that are here; where the stream goes on."""
        return self._sequence.offset

    def write(self, offset: int, data: bytes) -> None:
        """Takes the next bytes: one write, one digest, one look at every value.

        Raises:
            FedLoraError: OFFSET_MISMATCH, TOO_LARGE, INVALID_PAYLOAD, MANIFEST_MISMATCH,
                NOT_FINITE or OUT_OF_SPACE.
        """
        self._sequence.accept(offset, len(data))
        self._verifier.feed(data)
        self._digest.update(data)
        with _mapped_errors():
            self._open_file().write(data)

    def commit(self, total_bytes: int, sha256: bytes) -> str:
        """Makes the upload a blob; returns its digest, hexadecimal.

        Raises:
            FedLoraError: UPLOAD_INCOMPLETE (it can be resumed) or DIGEST_MISMATCH (it is gone).
        """
        self._verifier.finish()
        found = self._digest.digest()
        if found != sha256 or total_bytes != self._total:
            raise FedLoraError(
                Reason.DIGEST_MISMATCH,
                f"expected {total_bytes} bytes with SHA-256 {sha256.hex()}, got {self.offset} with "
                f"{found.hex()}",
                hint="Send the update again",
            )
        file = self._open_file()
        with _mapped_errors():
            file.flush()
            os.fsync(file.fileno())
        file.close()
        self._file = None
        self._store._rename(self._path, found.hex())  # noqa: SLF001
        self._store._close(self._key)  # noqa: SLF001
        return found.hex()

    def suspend(self) -> None:
        """Keeps what has come, to be resumed."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            if not self.offset:
                self._path.unlink(missing_ok=True)
            self._store._close(self._key)  # noqa: SLF001

    def discard(self) -> None:
        """Leaves nothing behind."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)
            self._store._close(self._key)  # noqa: SLF001

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise AssertionError("the upload has ended")
        return self._file

    def _restart(self) -> None:
        self._digest = hashlib.sha256()
        self._verifier = PayloadVerifier(self._manifest, self._total)
        self._sequence = ChunkSequence(total_bytes=self._total, max_chunk_bytes=self._total)

    def _replay(self) -> None:
        """Brings digest and verifier to where the file ends."""
        file = self._open_file()
        file.seek(0)
        while data := file.read(_BLOCK_BYTES):
            self._sequence.accept(self._sequence.offset, len(data))
            self._verifier.feed(data)
            self._digest.update(data)


def _digest(file: BinaryIO) -> hashlib._Hash:
    digest = hashlib.sha256()
    while data := file.read(_BLOCK_BYTES):
        digest.update(data)
    return digest


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise FedLoraError(
                Reason.OUT_OF_SPACE,
                f"no room on the server: {error.strerror}",
                hint="Free space in the state directory; the upload can then be resumed",
            ) from error
        raise
