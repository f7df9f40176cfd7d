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

A blob that the database no longer names is taken away by `sweep`, unless it is pinned: whoever
makes a blob has a pin on it until the database names it, whoever reads one that is not named has a
pin until it is read. A pin that nobody releases costs room until the server ends, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from aggregator_service.store.files import mapped_errors, rename_durably, sync_file
from aggregator_service.store.upload_writer import UploadWriter
from fedlora.digests import DIGEST_NAME, digest_file, is_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.folders import sync_folder
from fedlora.tensors.manifest import TensorManifest

__all__ = ["BlobStore", "Swept", "blob_path"]

_BLOCK_BYTES = 1024**2

_ABANDONED_SECONDS = 7 * 24 * 3600
"""a partial upload untouched for so long is swept at start: its round is long over"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep has taken away."""

    num_files: int = 0
    total_bytes: int = 0


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
        self._take_over(keep_uploads=keep_uploads)
        self._open: set[Path] = set()
        self._pins: Counter[str] = Counter()
        self._doomed: set[str] = set()
        """digests that a sweep under way may take away; none of them is pinned"""
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

        It is pinned, for the caller to release.

        Raises:
            FedLoraError: OUT_OF_SPACE or DISK_FAILED.
        """
        with mapped_errors():
            with path.open("rb+") as file:
                digest = digest_file(file).hexdigest()
                sync_file(file.fileno())
            self.pin(digest)
            try:
                rename_durably(path, self.path(digest))
            except BaseException:
                self.release(digest)
                raise
        return digest

    # --- what is taken away --------------------------------------------------------------

    def pin(self, digest: str) -> None:
        """Keeps a blob, there or about to be, from being swept until it is released as often."""
        with self._lock:
            self._pins[digest] += 1
            self._doomed.discard(digest)

    def release(self, digest: str) -> None:
        """Takes one pin away."""
        with self._lock:
            if self._pins[digest] < 1:
                raise AssertionError(f"blob {digest} is not pinned")
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]

    @contextlib.contextmanager
    def pinned(self, digest: str) -> Iterator[None]:
        """A pin for as long as the block lasts."""
        self.pin(digest)
        try:
            yield
        finally:
            self.release(digest)

    def sweep(self, named: Callable[[], Collection[str]]) -> Swept:
        """Takes away every blob that is neither pinned nor named. One call at a time.

        Args:
            named: asks the database for the digests that must stay; called once, after the files
                have been listed. So a blob that came and was named meanwhile is in its answer,
                and one that comes later is in no list.

        Raises:
            FedLoraError: DISK_FAILED.
        """
        with mapped_errors():
            listed = {digest for folder in self._blobs.iterdir() for digest in _blobs_in(folder)}
            with self._lock:
                self._doomed = listed - self._pins.keys()
            keep = named()
            with self._lock:
                self._doomed.difference_update(keep)
                left = sorted(self._doomed)
            sizes = [self._take_away(digest) for digest in left]
        return Swept(
            num_files=sum(s is not None for s in sizes), total_bytes=sum(filter(None, sizes))
        )

    def _take_away(self, digest: str) -> int | None:
        """Removes a blob and returns its size, unless somebody has pinned it since."""
        moved = self.new_temporary()
        with self._lock:
            # Only its name: to remove a large file takes a disk so long that uploads would wait.
            if digest not in self._doomed or not _rename_if_there(self.path(digest), moved):
                return None
        size = moved.stat().st_size
        moved.unlink()
        return size

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

    def _take_over(self, *, keep_uploads: bool) -> None:
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


def _blobs_in(folder: Path) -> Iterator[str]:
    """Digests of the blobs in one of the folders; what has no such name is somebody else's."""
    names = (path.name for path in folder.iterdir())
    return (name for name in names if is_digest(name) and name[:2] == folder.name)


def _rename_if_there(path: Path, target: Path) -> bool:
    try:
        path.replace(target)
    except FileNotFoundError:
        return False
    return True
