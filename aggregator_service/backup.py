"""`python -m aggregator_service.backup STATE_DIR OUT`: `fedlora backup` where there is no fedlora.

The image of the aggregator has no command line. Whoever may run a program in its container makes a
backup with this one, while the server runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aggregator_service.store.backup import back_up
from fedlora.errors import FedLoraError
from fedlora.exit_codes import exit_code_of

__all__ = ["main"]


def main() -> int:
    """Makes the backup, says what is in it, and returns the exit code (docs/cli.md)."""
    parser = argparse.ArgumentParser(prog="python -m aggregator_service.backup")
    parser.add_argument("state_dir", type=Path, help="the server's state directory")
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    given = parser.parse_args()
    try:
        done = back_up(given.state_dir, given.out)
    except FedLoraError as error:
        print(f"fedlora-backup: {error}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)
    runs = ", ".join(done.runs)
    print(f"{runs}: {done.num_blobs} files, {done.total_bytes} bytes -> {given.out}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
