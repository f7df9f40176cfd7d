"""`python -m client_worker.replica`: a worker whose name outlives its container.

A worker's name is its identity in a run: its share of the data and its unsent update hang on it.
Replicas of one service differ only by a host name that changes with every container, so the name
comes from a folder they share: `worker-N` of the first numbered file whose lock is free. The
process holds the lock as long as it lives, and the kernel frees it however it ends. (Locks work
between the containers of one host; on several hosts each worker is given its name.)
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from client_worker.__main__ import main as work
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import exit_code_of

__all__ = ["IDENTITIES_VARIABLE", "SEATS_VARIABLE", "main", "settings_of", "take_seat"]

SEATS_VARIABLE = "FEDLORA_SEATS"
"""folder that the replicas share; not read by a worker that was given a name"""
IDENTITIES_VARIABLE = "FEDLORA_IDENTITIES"
"""folder of identities, each in a folder of its worker's name; unset: none is chosen"""

_NAME = "FEDLORA_WORKER__NAME"
_IDENTITY = "FEDLORA_WORKER__IDENTITY_DIR"


def take_seat(folder: Path) -> tuple[int, IO[bytes]]:
    """The first free seat, from 1, and the open file that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seat in itertools.count(1):
        file = (folder / str(seat)).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return seat, file
    raise AssertionError("counting ended")


def settings_of(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker of that name finds in its environment beside what is there already."""
    chosen = {_NAME: name}
    identities = environment.get(IDENTITIES_VARIABLE)
    if identities and _IDENTITY not in environment:
        chosen[_IDENTITY] = str(Path(identities, name))
    return chosen


def main() -> int:
    """Takes a seat unless there is a name, works, and returns the worker's exit code."""
    name, held = os.environ.get(_NAME), None
    if not name:
        seats = os.environ.get(SEATS_VARIABLE)
        if not seats:
            error = FedLoraError(
                Reason.INVALID_CONFIG,
                f"a replica expected the folder of the seats in {SEATS_VARIABLE}, got none",
                hint=f"Set it, or give the worker its name in {_NAME}",
            )
            print(f"fedlora-worker: {error}", file=sys.stderr)  # noqa: T201
            return exit_code_of(error)
        seat, held = take_seat(Path(seats))
        name = f"worker-{seat}"
    os.environ.update(settings_of(name, os.environ))
    try:
        return work()
    finally:
        if held is not None:
            held.close()


if __name__ == "__main__":
    sys.exit(main())
