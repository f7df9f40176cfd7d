"""`python -m aggregator_service.archive`: folders out of a container, and back into one.

    … archive pack /data/runs/quickstart > quickstart.tar
    … archive unpack /data/restored < backup.tar

`kubectl cp` and its like need a shell or a `tar` inside, which the images do not have.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO

from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import exit_code_of

__all__ = ["main", "pack", "unpack"]


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
            tar that stays in its folder.
    """
    if folder.exists():
        raise FedLoraError(
            Reason.ALREADY_EXISTS, f"{folder} is there already", hint="Name a new folder"
        )
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected a tar that `pack` wrote: {error}"
        ) from error


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
