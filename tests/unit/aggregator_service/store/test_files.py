from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aggregator_service.store.files import mapped_errors, rename_durably, write_all
from fedlora.errors import FedLoraError, Reason


def test_all_bytes_are_written_though_the_system_takes_a_few_at_a_time(tmp_path: Path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    handle = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    write_all(handle, bytes(range(100)))
    os.close(handle)
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_device_is_out_of_space():
    handle = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(FedLoraError, match="No space left") as caught, mapped_errors():
        write_all(handle, b"x")
    os.close(handle)
    assert caught.value.reason is Reason.OUT_OF_SPACE


def test_only_what_a_disk_says_is_renamed():
    for code, reason in (
        (errno.EDQUOT, Reason.OUT_OF_SPACE),
        (errno.EIO, Reason.DISK_FAILED),
        (errno.EROFS, Reason.DISK_FAILED),
    ):
        with pytest.raises(FedLoraError) as caught, mapped_errors():
            raise OSError(code, os.strerror(code))
        assert caught.value.reason is reason
    with pytest.raises(PermissionError), mapped_errors():
        raise PermissionError(errno.EACCES, "denied")


def test_a_rename_replaces_what_is_there(tmp_path: Path):
    (tmp_path / "aa").mkdir()
    for text in ("one", "two"):
        (tmp_path / "made").write_text(text)
        rename_durably(tmp_path / "made", tmp_path / "aa" / "name")
    assert (tmp_path / "aa" / "name").read_text() == "two"
    assert not (tmp_path / "made").exists()
