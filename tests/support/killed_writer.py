"""Writes an identity over another, killed by SIGKILL before each of its steps in turn.

python killed_writer.py BEFORE AFTER COPIES

BEFORE is a folder as it was, AFTER one with the identity that is written. COPIES/0 is what is left
of a copy of BEFORE whose writer was killed before its first call of the system that names a file,
COPIES/1 before the second, and so on; in the last one the writer came to its end.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from fedlora.identity.certificates import key_from_pem
from fedlora.identity.folder import read_identity, write_identity


def main(before: Path, after: Path, copies: Path) -> None:
    files = read_identity(after, now=time.time())
    key = key_from_pem(files.key_pem)
    for step in itertools.count():
        folder = copies / str(step)
        if before.exists():
            shutil.copytree(before, folder, symlinks=True)
        if not (child := os.fork()):
            die_before(step)
            write_identity(
                folder,
                authorities_pem=files.authorities_pem,
                certificates_pem=files.certificates_pem,
                key=key,
            )
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, status


def die_before(step: int) -> None:
    """Ends this process before it opens, makes, renames or removes something once more."""
    left = itertools.count(step, -1)

    def hook(event: str, _: object) -> None:
        if event.startswith(("open", "os.", "shutil.")) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
