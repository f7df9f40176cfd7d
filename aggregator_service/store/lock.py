"""One owner per state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from fedlora.errors import FedLoraError, Reason

__all__ = ["StateLock"]


class StateLock:
    """Holds a state directory until released, or until the process ends in whatever way.

    Args:
        root: the state directory.

    Raises:
        FedLoraError: STATE_LOCKED at once if another process holds it.
    """

    def __init__(self, root: Path) -> None:
        path = root / "lock"
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(self._handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise FedLoraError(
                Reason.STATE_LOCKED,
                f"another aggregator (process {owner}) owns {root}",
                hint="Stop it, or choose another server.state_dir",
            ) from error
        # The pid is for people: the lock holds without it, such as on a full disk.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets go of the directory."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
