"""An identity folder is the old one or the new one, whenever its writer is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import killed_writer
from support.identities import Federation

from fedlora.errors import FedLoraError
from fedlora.identity.certificates import key_from_pem
from fedlora.identity.folder import CERTIFICATE, KEY, read_identity, stamp, write_identity
from fedlora.identity.names import AccessRole
from fedlora.identity.setup import init_federation
from fedlora.identity.swap import holds, replace_files, settle

FILES = ["ca.crt", "tls.crt", "tls.key"]


def killed_at_every_step(before: Path, after: Path, copies: Path) -> list[Path]:
    """See support.killed_writer; in the order of the steps."""
    copies.mkdir()
    subprocess.run([sys.executable, killed_writer.__file__, before, after, copies], check=True)
    return sorted(copies.iterdir(), key=lambda folder: int(folder.name))


def contents(folder: Path) -> tuple[bytes, bytes, bytes]:
    """What counts in a folder, which must fit together."""
    files = read_identity(folder, now=time.time())
    return files.authorities_pem, files.certificates_pem, files.key_pem


def visible(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def visible_names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Federation(tmp_path / "old").member(AccessRole.WORKER, "w")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Of another federation: not even the authorities are those of the old one."""
    return Federation(tmp_path / "new", "other").member(AccessRole.WORKER, "w")


def test_who_is_killed_at_any_step_leaves_the_old_identity_or_the_new(
    old: Path, new: Path, tmp_path: Path
):
    left = killed_at_every_step(old, new, tmp_path / "killed")
    found = [contents(folder) for folder in left]
    swapped = found.index(contents(new))
    assert 0 < swapped < len(left) - 1
    assert found == [contents(old)] * swapped + [contents(new)] * (len(left) - swapped)
    assert visible(left[-1]) == visible(new)


def test_a_first_identity_is_there_whole_or_not_at_all(new: Path, tmp_path: Path):
    left = killed_at_every_step(tmp_path / "nothing", new, tmp_path / "killed")
    there = [holds(folder, CERTIFICATE) for folder in left]
    assert there == sorted(there)
    assert {*there} == {False, True}
    for folder, has_one in zip(left, there, strict=True):
        if has_one:
            assert contents(folder) == contents(new)
        else:
            with pytest.raises(FedLoraError, match="cannot be read"):
                contents(folder)


def test_what_a_kill_has_left_is_written_over_and_tidied_up(old: Path, new: Path, tmp_path: Path):
    first = killed_at_every_step(old, new, tmp_path / "killed")
    for folder in first:
        before = stamp(folder)
        settle(folder)
        assert stamp(folder) == before, "nobody has to read it again"
        assert contents(folder) in (contents(old), contents(new))
        files = read_identity(old, now=time.time())
        write_identity(
            folder,
            authorities_pem=files.authorities_pem,
            certificates_pem=files.certificates_pem,
            key=key_from_pem(files.key_pem),
        )
        assert visible(folder) == visible(old)
        assert (folder / KEY).stat().st_mode & 0o777 == 0o600
        assert (folder / CERTIFICATE).stat().st_mode & 0o777 == 0o644


def test_a_second_kill_while_the_first_is_made_up_for_loses_nothing(
    old: Path, new: Path, tmp_path: Path
):
    third = Federation(tmp_path / "third").member(AccessRole.WORKER, "w")
    first = killed_at_every_step(old, new, tmp_path / "killed")
    halfway = [folder for folder in first if (folder / ".next").is_dir()]
    assert len(halfway) > len(FILES)
    for folder in halfway:
        again = killed_at_every_step(folder, third, tmp_path / f"again-{folder.name}")
        for left in again:
            assert contents(left) in (contents(folder), contents(third))
        assert visible(again[-1]) == visible(third)


def test_a_folder_that_kubernetes_mounts_is_read_and_swapped_by_its_own_link(
    old: Path, new: Path, tmp_path: Path
):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "..data").symlink_to(old)
    for name in FILES:
        (mounted / name).symlink_to(Path("..data") / name)
    before = stamp(mounted)
    assert contents(mounted) == contents(old)
    (mounted / "..data_tmp").symlink_to(new)
    (mounted / "..data_tmp").rename(mounted / "..data")
    assert stamp(mounted) != before
    assert contents(mounted) == contents(new)


def test_an_authority_that_counts_already_is_not_made_again(tmp_path: Path):
    home = tmp_path / "authority"
    init_federation(tmp_path, federation="lab", server_names=["localhost"], days=10)
    (home / ".next").mkdir()
    (home / "ca.key").rename(home / ".next" / "ca.key")
    with pytest.raises(FedLoraError, match="has an authority"):
        init_federation(tmp_path, federation="lab", server_names=["localhost"], days=10)
    settle(home)
    assert sorted(visible_names(home)) == ["ca.crt", "ca.key"]


def test_files_of_other_names_stay(tmp_path: Path):
    replace_files(tmp_path / "f", {"a": b"1", "b": b"1"})
    replace_files(tmp_path / "f", {"b": b"2"})
    assert visible(tmp_path / "f") == {"a": b"1", "b": b"2"}
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o700
