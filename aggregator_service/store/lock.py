"""One owner per state directory: the guard at the door.

The lock goes with the process that holds it, so a dead owner never keeps anybody out. A frozen one
does; `take_over` starts in its place all the same, with a lock file of its own. Should the frozen
one wake, two processes hold the directory: the store's epoch (see `sqlite`) keeps the older one
from writing, and `is_held` tells it that it has been replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from fedlora.errors import FedLoraError, Reason
from fedlora.folders import sync_folder

__all__ = ["StateLock"]


class StateLock:
    """Holds a state directory until released, or until the process ends in whatever way.

    Args:
        root: the state directory.
        take_over: take it from a process that holds it.

    Raises:
        FedLoraError: STATE_LOCKED at once if another process holds it and is not to be replaced.
    """

    def __init__(self, root: Path, *, take_over: bool = False) -> None:
        self._path = root / "lock"
        self.took_over = False
        """another process held the directory, and may still believe that it does"""
        self._handle: int | None = _open(self._path)
        # A file that has lost its name while it was opened is the lock of nobody.
        if not (_lock(self._handle) and self.is_held):
            owner = os.read(self._handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            if not take_over:
                raise FedLoraError(
                    Reason.STATE_LOCKED,
                    f"another aggregator (process {owner}) owns {root}",
                    hint="Stop it, or choose another server.state_dir; if it hangs and cannot be "
                    "stopped, start with server.take_over",
                )
            self._handle = self._replace()
            self.took_over = True
        # The pid is for people: the lock holds without it, such as on a full disk.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    @property
    def is_held(self) -> bool:
        """Whether the directory is this process's: not released, not taken over by another."""
        if self._handle is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._handle), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Lets go of the directory."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _replace(self) -> int:
        """A locked file of our own under the lock's name."""
        own = self._path.with_name(f"lock.{secrets.token_hex(8)}")
        handle = _open(own)
        # Locked before it has the name: nobody who finds it there can be first.
        _lock(handle)
        own.replace(self._path)
        sync_folder(self._path.parent)
        return handle


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
