"""A file that one command holds, so that another one for the same folder is refused."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import FedLoraError, Reason

__all__ = ["locked"]


@contextmanager
def locked(file: Path, *, taken: str, hint: str) -> Iterator[None]:
    """Holds `file`, which is made if need be; the lock goes with the process, however that ends.

    Args:
        file: to lock; its folder is there.
        taken: what to tell where another process has it.
        hint: the way out of that.

    Raises:
        FedLoraError: STATE_LOCKED if another process has it.
    """
    with file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FedLoraError(Reason.STATE_LOCKED, taken, hint=hint) from None
        yield
