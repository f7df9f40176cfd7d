"""Writes the root file system of an image that has no shell: Python, what it links, nothing else.

Usage: `python root_filesystem.py ROOT FOLDER...`, in the base image. ROOT gets this interpreter and
its standard library, the system's libraries that it and the extension modules of the FOLDERs link
(the dynamic loader is asked), the certificates of public authorities, and the user that the service
runs as. A `FROM scratch` stage that copies it has no shell, no package manager and no pip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

__all__ = ["linked_libraries", "main"]

USER_ID = 10001
"""of the user `fedlora`; above the ids that systems give to people"""

FILES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    # How tools that add libraries of the host, such as a driver's, know the layout.
    Path("/etc/debian_version"),
    Path("/etc/os-release"),
)
"""of the system, beside libraries"""
TEXTS = {
    "etc/passwd": f"fedlora:x:{USER_ID}:{USER_ID}::/tmp:/nonexistent\n",
    "etc/group": f"fedlora:x:{USER_ID}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/ld.so.conf": f"/usr/local/lib\n/usr/lib/{sysconfig.get_config_var('MULTIARCH')}\n",
}
LINKS = {"lib": "usr/lib", "lib64": "usr/lib64", "bin": "usr/bin", "sbin": "usr/sbin"}
"""the merged layout that paths in binaries expect"""

UNWANTED = shutil.ignore_patterns(
    "__pycache__", "site-packages", "ensurepip", "idlelib", "lib2to3", "test", "tkinter",
    "turtledemo",
)  # fmt: skip
"""parts of the standard library that install, draw or test"""

_LOADED = re.compile(r"(?:=> )?(/\S+) \(0x")


def linked_libraries(folders: Iterable[Path]) -> set[Path]:
    """Libraries outside the folders that files in them link, as the loader finds them.

    What it does not find is left out: a library of a driver that comes with the host.
    """
    folders = tuple(folders)
    found: set[Path] = set()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.is_symlink() or not file.is_file() or not _is_elf(file):
                continue
            told = subprocess.run(["ldd", file], capture_output=True, text=True, check=False)
            found |= {Path(path) for path in _LOADED.findall(told.stdout)}
    return {path for path in found if not any(path.is_relative_to(f) for f in folders)}


def _is_elf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def _place(root: Path, source: Path) -> None:
    """Copies a library under its merged path, and what it is a link to."""
    merged = source.parent.resolve() / source.name
    target = root / merged.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(merged, target, follow_symlinks=False)
    if merged.is_symlink():
        _place(root, merged.parent / merged.readlink())


def _lay_out(root: Path) -> None:
    """The folders and files that are written, not copied."""
    for name, target in LINKS.items():
        (root / target).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


def _copy_python(root: Path) -> Path:
    """Copies this interpreter and its standard library; returns where they are installed."""
    prefix, name = Path(sys.base_prefix), f"python3.{sys.version_info.minor}"
    home = root / prefix.relative_to("/")
    (home / "bin").mkdir(parents=True)
    for program in (name, "python3", "python"):
        shutil.copy2(prefix / "bin" / program, home / "bin" / program, follow_symlinks=False)
    shutil.copytree(prefix / "lib" / name, home / "lib" / name, ignore=UNWANTED)
    for file in (prefix / "lib").glob("libpython*.so*"):
        _place(root, file)
    return prefix


def main(root: Path, folders: Iterable[Path]) -> list[Path]:
    """Writes the tree; returns the system's files in it, to be told by the SBOM."""
    _lay_out(root)
    prefix = _copy_python(root)
    carried = sorted({*FILES, *linked_libraries([prefix, *folders])})
    for path in carried:
        _place(root, path)
    # The loader's cache tells where libpython is; the other file that ldconfig writes has times.
    subprocess.run(["ldconfig", "-r", root], check=True)
    shutil.rmtree(root / "var", ignore_errors=True)
    return carried


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: root_filesystem.py ROOT FOLDER...")
    for line in main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]]):
        sys.stdout.write(f"{line}\n")
