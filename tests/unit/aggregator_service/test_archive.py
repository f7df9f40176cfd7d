"""Folders travel through pipes and come out as they were."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from aggregator_service.archive import pack, unpack
from fedlora.errors import FedLoraError, Reason


def test_a_folder_comes_out_as_it_went_in(tmp_path: Path) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "adapter").write_bytes(bytes(range(256)) * 5000)
    module = [sys.executable, "-m", "aggregator_service.archive"]
    packed = subprocess.run([*module, "pack", tmp_path / "run"], capture_output=True, check=True)
    subprocess.run([*module, "unpack", tmp_path / "out"], input=packed.stdout, check=True)
    files = [file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")]
    assert sorted(map(str, files)) == ["final", "final/adapter"]
    copy = tmp_path / "out" / "final" / "adapter"
    assert copy.read_bytes() == (tmp_path / "run" / "final" / "adapter").read_bytes()


def test_a_member_that_would_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        archive.addfile(tarfile.TarInfo("../planted"))
    stream.seek(0)
    with pytest.raises(FedLoraError) as refused:
        unpack(stream, tmp_path / "out")
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    assert not (tmp_path / "planted").exists()


def test_an_archive_that_was_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("a", "b"):
        (tmp_path / "run" / name).write_bytes(bytes([1]) * 5000)
    stream = io.BytesIO()
    pack(tmp_path / "run", stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        ends = [member.offset for member in archive.getmembers()[1:]]
        ends.append(archive.offset)
    for end in (*ends, ends[-1] + tarfile.BLOCKSIZE):
        cut = io.BytesIO(stream.getvalue()[:end])
        with pytest.raises(FedLoraError, match="cut short") as refused:
            unpack(cut, tmp_path / f"out-{end}")
        assert refused.value.reason is Reason.INVALID_ARGUMENT


def test_nothing_is_written_over(tmp_path: Path) -> None:
    stream = io.BytesIO()
    pack(tmp_path, stream)
    stream.seek(0)
    with pytest.raises(FedLoraError) as refused:
        unpack(stream, tmp_path)
    assert refused.value.reason is Reason.ALREADY_EXISTS


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FedLoraError, match=r"there is no folder .*nowhere"):
        pack(tmp_path / "nowhere", io.BytesIO())
