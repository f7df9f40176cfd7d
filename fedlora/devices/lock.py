"""One worker to a device: a lock on a file that bears the device's UUID.

The lock is flock's. It belongs to the open file, so the kernel frees it however its process ends,
and nothing has to be cleaned up. It holds for all processes that see the same folder: those of a
host, and containers that share it as a volume.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import FedLoraError, Reason

__all__ = ["device_lock"]

_WAIT_SECONDS = 5.0
"""for a process that was killed a moment ago: CUDA takes seconds to give a device back"""
_POLL_SECONDS = 0.1


@contextmanager
def device_lock(
    uuid: str, folder: Path, *, shared: bool = False, wait_seconds: float = _WAIT_SECONDS
) -> Iterator[None]:
    """Holds a device for this process.

    Args:
        uuid: of the device, whole.
        folder: where the locks are; made if it is not there.
        shared: others who say so too may hold it at the same time.
        wait_seconds: how long to wait for one who holds it.

    Raises:
        FedLoraError: DEVICE_UNAVAILABLE if another holds it, or the file cannot be opened.
    """
    file = folder / uuid.replace("/", "-")
    try:
        _make(folder)
        descriptor = _open(file)
    except OSError as error:
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"the lock of device {uuid} cannot be opened: {error}",
            hint="Set worker.device_lock_dir to a folder that all workers of this host can write",
        ) from error
    try:
        if not _taken(descriptor, shared=shared, wait_seconds=wait_seconds):
            raise FedLoraError(
                Reason.DEVICE_UNAVAILABLE,
                f"the device {uuid} is another worker's, and a worker needs one of its own",
                hint=f"`fuser -v {file}` names its process; choose another worker.device, or set "
                "worker.share_device = true for both",
            )
        yield
    finally:
        os.close(descriptor)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    # As /tmp is: every user's workers lock here, and none removes another's file.
    folder.chmod(0o1777)


def _open(file: Path) -> int:
    # Reading is enough for flock. Another user's file is opened without O_CREAT, with which the
    # kernel refuses it in a folder like /tmp (fs.protected_regular).
    while True:
        try:
            return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                continue
            os.fchmod(descriptor, 0o644)
            return descriptor


def _taken(descriptor: int, *, shared: bool, wait_seconds: float) -> bool:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True
