"""The few things that make a file durable, and what a disk's refusals are called here."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from aggregator_service.failpoints import ARMED, Failpoint, reach
from fedlora.errors import FedLoraError, Reason
from fedlora.folders import sync_folder

__all__ = [
    "mapped_errors",
    "rename_durably",
    "start_writeback",
    "sync_file",
    "write_all",
]

_SYNC_FILE_RANGE_WRITE = 2
"""sync_file_range(2): begin to write these pages and do not wait"""

_FAILS = frozenset({errno.EIO, errno.EROFS})
"""Linux makes a file system read-only whose disk fails"""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turns what a full or failing disk says into errors that a peer can act upon.

    Raises:
        FedLoraError: OUT_OF_SPACE for a full disk, quota or size limit, DISK_FAILED for a disk
            that fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise FedLoraError(
                Reason.OUT_OF_SPACE,
                f"no room on the server: {error.strerror}",
                hint="Free space in the state directory and try again",
            ) from error
        if error.errno in _FAILS:
            raise FedLoraError(
                Reason.DISK_FAILED,
                f"the server's disk fails: {error.strerror}",
                hint="Look at the disk of the state directory and try again",
            ) from error
        raise


def sync_file(handle: int) -> None:
    """Makes a file's bytes durable."""
    reach(Failpoint.BLOB_UNSYNCED)
    os.fsync(handle)
    reach(Failpoint.BLOB_SYNCED)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Writes all of `data`; the system may take less of it at a time."""
    view = memoryview(data)
    if Failpoint.MID_CHUNK in ARMED:
        half = view[: len(view) // 2]
        view = view[len(half) :]
        while half:
            half = half[os.write(handle, half) :]
        reach(Failpoint.MID_CHUNK)
    while view:
        view = view[os.write(handle, view) :]


def start_writeback(handle: int, offset: int, num_bytes: int) -> None:
    """Asks the kernel to begin writing a part of a file to its disk.

    Nothing is durable by it and errors are left to the fsync that follows, which finds less to do.
    Where the system has no such call nothing happens.
    """
    if call := _sync_file_range():
        call(handle, offset, num_bytes, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        call = ctypes.CDLL(None).sync_file_range
    except AttributeError:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] = call
    return found


def rename_durably(path: Path, target: Path) -> None:
    """Gives a synced file its final name, in a folder that is there; durable on return."""
    reach(Failpoint.BEFORE_RENAME)
    path.replace(target)
    reach(Failpoint.RENAMED)
    sync_folder(target.parent)
    reach(Failpoint.FOLDER_SYNCED)
