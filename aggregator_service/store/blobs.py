"""Adapters and updates as files named by their digest.

    root/blobs/ab/<digest>               whole, durable, never changed
    root/uploads/<digest>.<owner>.part   an upload so far; named by a digest of its key
    root/tmp/                            files in the making; swept at start
    root/quarantine/                     blobs that no longer have their digest

A file gets its final name in the order: file synced, renamed, directory synced. Only then does the
caller write of it to the database, and only then is anybody told. No name here contains anything a
client has written. All methods block; they are called from threads.

Partial uploads carry the name of the store that writes them, new for each: what a frozen server
still has open when it wakes is never a file that its successor goes on with.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

from aggregator_service.store.files import mapped_errors, rename_durably, sync_file
from aggregator_service.store.upload_writer import UploadWriter
from fedlora.digests import DIGEST_NAME, digest_file, is_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.folders import sync_folder
from fedlora.tensors.manifest import TensorManifest

__all__ = ["BlobStore", "UploadWriter", "blob_path"]

_BLOCK_BYTES = 1024**2

_ABANDONED_SECONDS = 7 * 24 * 3600
"""a partial upload untouched for so long is swept at start: its round is long over"""


class BlobStore:
    """Content-addressed files below one folder.

    Args:
        root: the state directory; created if it is not there.
        keep_uploads: go on with the partial uploads of earlier servers, all of which have ended.
    """

    def __init__(self, root: Path, *, keep_uploads: bool = True) -> None:
        self._blobs, self._uploads = root / "blobs", root / "uploads"
        self._tmp, self._quarantine = root / "tmp", root / "quarantine"
        with mapped_errors():
            for folder in (self._blobs, self._uploads, self._tmp, self._quarantine):
                folder.mkdir(parents=True, exist_ok=True)
            # All of them now: no update has to wait until a new folder is durable as well.
            for prefix in range(256):
                (self._blobs / f"{prefix:02x}").mkdir(exist_ok=True)
            sync_folder(self._blobs)
            sync_folder(root)
            sync_folder(root.parent)
        self._owner = secrets.token_hex(4)
        self._sweep(keep_uploads=keep_uploads)
        self._open: set[Path] = set()
        self._lock = threading.Lock()

    # --- finished files ------------------------------------------------------------------

    def path(self, digest: str) -> Path:
        """Where the blob of a digest, 64 hexadecimal digits, lies or would lie."""
        return blob_path(self._blobs, digest)

    def verify(self, digest: str) -> None:
        """Reads a blob and compares its digest.

        Raises:
            FedLoraError: STATE_CORRUPT if it is missing or has other bytes; it is then put
                aside, so that it can be looked at but never used. DISK_FAILED if the disk fails.
        """
        path = self.path(digest)
        try:
            with mapped_errors(), path.open("rb") as file:
                found = digest_file(file).hexdigest()
        except FileNotFoundError:
            found = "no file"
        if found != digest:
            if path.exists():
                path.replace(self._quarantine / f"{digest}.{secrets.token_hex(4)}")
            raise FedLoraError(
                Reason.STATE_CORRUPT,
                f"stored adapter {digest} is damaged: found {found}",
                hint="Restore the state directory from a backup",
            )

    def new_temporary(self) -> Path:
        """A path for a file in the making, on the same file system as the blobs."""
        return self._tmp / secrets.token_hex(16)

    def probe(self) -> None:
        """Writes a little, durably, and takes it away again.

        Raises:
            FedLoraError: OUT_OF_SPACE or DISK_FAILED.
        """
        path = self.new_temporary()
        try:
            with mapped_errors(), path.open("wb") as file:
                file.write(bytes(_BLOCK_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, path: Path) -> str:
        """Makes a finished file a blob, durable on return; returns its digest, hexadecimal.

        Raises:
            FedLoraError: OUT_OF_SPACE or DISK_FAILED.
        """
        with mapped_errors():
            with path.open("rb+") as file:
                digest = digest_file(file).hexdigest()
                sync_file(file.fileno())
            rename_durably(path, self.path(digest))
        return digest

    # --- uploads -------------------------------------------------------------------------

    def open_upload(self, key: str, *, total_bytes: int, manifest: TensorManifest) -> UploadWriter:
        """Begins or resumes an upload.

        A partial file that is no beginning of such a payload (another declared size, say) is
        emptied; the writer's offset tells where to go on.

        Args:
            key: names the upload; opaque.
            total_bytes: its declared size.
            manifest: the tensors it must hold.

        Raises:
            FedLoraError: UNAVAILABLE while another stream writes it, INVALID_PAYLOAD for a size
                that no such payload has, OUT_OF_SPACE.
        """
        path = self._part(key)
        with self._lock:
            if path in self._open:
                raise FedLoraError(
                    Reason.UNAVAILABLE,
                    "another stream of this upload is still open",
                    hint="Try again when the server has given it up",
                )
            self._open.add(path)
        try:
            return UploadWriter(
                path,
                total_bytes=total_bytes,
                manifest=manifest,
                blob_path=self.path,
                on_end=lambda: self._close(path),
            )
        except BaseException:
            self._close(path)
            raise

    def durable_bytes(self, key: str) -> int:
        """How much of an upload is here; 0 if nothing is."""
        try:
            return self._part(key).stat().st_size
        except FileNotFoundError:
            return 0

    def forget_upload(self, key: str) -> None:
        """Takes away what has come of an upload; nothing happens while a stream writes it."""
        path = self._part(key)
        with self._lock:
            if path not in self._open:
                path.unlink(missing_ok=True)

    def _part(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._uploads / f"{name}.{self._owner}.part"

    def _close(self, path: Path) -> None:
        with self._lock:
            self._open.discard(path)

    def _sweep(self, *, keep_uploads: bool) -> None:
        for leftover in self._tmp.iterdir():
            leftover.unlink()
        abandoned = time.time() - _ABANDONED_SECONDS
        for part in self._uploads.iterdir():
            if keep_uploads and part.stat().st_mtime >= abandoned:
                part.rename(part.with_name(f"{part.name.partition('.')[0]}.{self._owner}.part"))
            else:
                part.unlink()


def blob_path(blobs: Path, digest: str) -> Path:
    """Where the blob of a digest lies below the folder of all blobs."""
    if not is_digest(digest):
        raise AssertionError(f"{digest[:80]!r} is no {DIGEST_NAME}")
    return blobs / digest[:2] / digest
