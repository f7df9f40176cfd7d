"""What goes into an image: the same tree from every build, and the libraries that it links."""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.image_scripts import FOLDER, image_script

SETTLE = image_script("settle")
ROOT_FILESYSTEM = image_script("root_filesystem")


def digest(tree: Path) -> str:
    """Of the names, modes, times and contents of all that is in a tree."""
    seen = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        facts = path.lstat()
        content = path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes()
        told = (str(path.relative_to(tree)), facts.st_mode, facts.st_mtime_ns, content)
        seen.update(repr(told).encode())
    return seen.hexdigest()


def write_tree(folder: Path, *, mode: int, seconds: float) -> Path:
    """A tree as some builder's checkout may have it."""
    tree = folder / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "package" / "module.py").write_text("NAMES = {'a', 'b', 'c'}\n")
    (tree / "package" / "other.py").write_text("def f[T](x): ...  # a later Python's\n")
    (tree / "link").symlink_to("package/module.py")
    for path in tree.rglob("*.py"):
        path.chmod(mode)
        os.utime(path, (seconds, seconds))
    # As installers leave it: bytecode with the time of its source.
    compileall.compile_dir(tree, quiet=2)
    return tree


def settled(folder: Path, *, mode: int, seconds: float) -> Path:
    """That tree after the script, at one place: bytecode carries the path of its source."""
    tree = write_tree(folder, mode=mode, seconds=seconds)
    place = folder.parent / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.move(tree, place)
    subprocess.run([sys.executable, FOLDER / "settle.py", place], check=True)
    return place


def test_trees_of_different_times_and_modes_become_the_same(tmp_path: Path) -> None:
    first = digest(settled(tmp_path / "a", mode=0o664, seconds=1.0e9))
    assert digest(settled(tmp_path / "b", mode=0o644, seconds=1.5e9)) == first
    assert digest(write_tree(tmp_path / "c", mode=0o644, seconds=1.5e9)) != first


def test_bytecode_is_used_although_every_source_has_another_time(tmp_path: Path) -> None:
    place = settled(tmp_path / "a", mode=0o644, seconds=1.0e9)
    (place / "package" / "module.py").write_text("raise RuntimeError('the source was read')\n")
    done = subprocess.run(
        [sys.executable, "-B", "-c", "import package.module"], cwd=place, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [(0o664, 0o644), (0o600, 0o600), (0o775, 0o755), (0o700, 0o700), (0o1777, 0o1777)],
)
def test_modes_follow_from_what_a_file_is(mode: int, becomes: int, tmp_path: Path) -> None:
    path = tmp_path / "tree" / "entry"
    path.mkdir(parents=True)
    path.chmod(mode)
    SETTLE.settle(tmp_path / "tree")
    assert path.stat().st_mode & 0o7777 == becomes


@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd command")
def test_the_libraries_are_those_that_the_loader_finds_elsewhere(tmp_path: Path) -> None:
    import _blake2

    module = Path(_blake2.__file__)
    (tmp_path / "text").write_text("not a program")
    shutil.copy(module, tmp_path)
    found = ROOT_FILESYSTEM.linked_libraries([tmp_path])
    assert "libc.so.6" in {path.name for path in found}
    assert all(path.exists() and not path.is_relative_to(tmp_path) for path in found)
