"""Makes a tree the same however and whenever it was built.

Usage: `python settle.py TREE`. All Python files get bytecode that carries no time and is not
checked against its source (the image is read-only); modes follow from what a file is and not from
the builder's umask; every time becomes that of `SETTLED_SECONDS`.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import stat
import sys
from pathlib import Path

__all__ = ["SETTLED_SECONDS", "settle"]

SETTLED_SECONDS = 315_532_800
"""1980-01-01 in seconds since the epoch: the earliest that a zip file can hold"""


def settle(tree: Path) -> None:
    """Compiles what this Python can compile, then sets the modes and times of all there is."""
    compileall.compile_dir(
        tree,
        maxlevels=100,
        quiet=2,
        force=True,  # what was compiled elsewhere carries a time
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(_mode(path.stat().st_mode))
        os.utime(path, (SETTLED_SECONDS, SETTLED_SECONDS), follow_symlinks=False)


def _mode(mode: int) -> int:
    """As the owner has it, for all to read; what nobody else may enter stays so."""
    permissions = stat.S_IMODE(mode)
    if permissions & 0o077 == 0 or permissions & stat.S_ISVTX:
        return permissions
    readable = permissions | 0o444
    return (readable | 0o111 if readable & 0o100 else readable) & ~0o022


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: settle.py TREE")
    settle(Path(sys.argv[1]))
