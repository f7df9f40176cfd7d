"""Files of one folder that are replaced together or not at all, whenever the writer is killed.

New files are written into a folder inside, which is then renamed to `.next`. From then on they are
what counts, and no longer those of the same names beside it. After that they are moved out, so that
a folder at rest holds plain files and nothing else. No links are needed, so that every volume will
do; a folder that was made by hand, or that Kubernetes mounts, is read like any other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from fedlora.folders import make_folder, sync_folder

__all__ = ["file_status", "holds", "read_file", "replace_files", "settle"]

T = TypeVar("T")

_WRITING = ".writing"
"""not counted yet"""
_NEXT = ".next"


def read_file(folder: Path, name: str) -> bytes:
    """What a file of the folder holds; OSError if it is not there."""
    return _current(folder, name, Path.read_bytes)


def file_status(folder: Path, name: str) -> os.stat_result:
    """Of the file that `read_file` reads."""
    return _current(folder, name, Path.stat)


def holds(folder: Path, name: str) -> bool:
    """Whether there is such a file, moved out or not."""
    try:
        file_status(folder, name)
    except OSError:
        return False
    return True


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replaces files of a folder, which is made if need be, by names; durable on return.

    Files whose names end in `.key` are readable for their owner alone. One process writes at a
    time; any number may read.
    """
    make_folder(folder, mode=0o700)
    settle(folder)
    writing = folder / _WRITING
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    for name, content in contents.items():
        mode = 0o600 if name.endswith(".key") else 0o644
        handle = os.open(writing / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(writing)
    writing.rename(folder / _NEXT)
    sync_folder(folder)
    settle(folder)


def settle(folder: Path) -> None:
    """Moves out what counts already, which a writer that was killed may have left undone."""
    following = folder / _NEXT
    if not following.is_dir():
        return
    for file in list(following.iterdir()):
        file.replace(folder / file.name)
    sync_folder(folder)
    following.rmdir()


def _current(folder: Path, name: str, look: Callable[[Path], T]) -> T:
    # In this order: a file that is moved in between is found in the second place.
    try:
        return look(folder / _NEXT / name)
    except FileNotFoundError:
        return look(folder / name)
