"""`python -m aggregator_service.archive`: folders out of a container, and back into one.

    … archive pack /data/runs/quickstart > quickstart.tar
    … archive unpack /data/restored < backup.tar

`kubectl cp` and its like need a shell or a `tar` inside, which the images do not have.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO

from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import exit_code_of

__all__ = ["main", "pack", "unpack"]

_END_BYTES = 2 * tarfile.BLOCKSIZE
"""zeros, with which every tar ends"""


def pack(folder: Path, out: BinaryIO) -> None:
    """Writes what is in a folder as a tar, as a stream.

    Raises:
        FedLoraError: NOT_FOUND if there is no such folder.
    """
    if not folder.is_dir():
        raise FedLoraError(Reason.NOT_FOUND, f"there is no folder {folder}")
    with tarfile.open(fileobj=out, mode="w|") as archive:
        archive.add(folder, arcname=".")


def unpack(source: BinaryIO, folder: Path) -> None:
    """Reads such a stream into a new folder; a member that would lie elsewhere is refused.

    Raises:
        FedLoraError: ALREADY_EXISTS if the folder is there, INVALID_ARGUMENT for anything but a
            whole tar that stays in its folder.
    """
    if folder.exists():
        raise FedLoraError(
            Reason.ALREADY_EXISTS, f"{folder} is there already", hint="Name a new folder"
        )
    stream = _Watched(source)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(folder, filter="data")
        while stream.read(tarfile.RECORDSIZE):
            pass
        if stream.tail != bytes(_END_BYTES):
            # Between two members tarfile takes the end of a stream for the end of the archive.
            raise tarfile.ReadError("it ends before its end mark: it was cut short on its way")
    except tarfile.TarError as error:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected a tar that `pack` wrote: {error}"
        ) from error


class _Watched(io.BufferedIOBase):
    """A stream that remembers the last bytes that were read of it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.tail = b""

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._source.read(-1 if size is None else size)
        self.tail = (self.tail + data)[-_END_BYTES:]
        return data


def main() -> int:
    """Packs to standard output or unpacks from standard input; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m aggregator_service.archive")
    parser.add_argument("way", choices=["pack", "unpack"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        if given.way == "pack":
            pack(given.folder, sys.stdout.buffer)
        else:
            unpack(sys.stdin.buffer, given.folder)
    except FedLoraError as error:
        print(f"fedlora-archive: {error}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
