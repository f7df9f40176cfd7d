from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aggregator_service.store.lock import StateLock
from fedlora.errors import FedLoraError, Reason

HOLDER = """
import sys
from pathlib import Path
from aggregator_service.store.lock import StateLock
lock = StateLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def refusal(folder: Path) -> FedLoraError:
    began = time.monotonic()
    with pytest.raises(FedLoraError) as caught:
        StateLock(folder)
    assert time.monotonic() - began < 1.0
    assert caught.value.reason is Reason.STATE_LOCKED
    return caught.value


def test_a_second_owner_is_refused_at_once_and_told_who_the_first_is(tmp_path: Path):
    lock = StateLock(tmp_path)
    assert f"process {os.getpid()}" in str(refusal(tmp_path))
    assert str(tmp_path) in str(refusal(tmp_path))
    lock.release()
    StateLock(tmp_path).release()


def test_a_killed_owner_does_not_keep_the_directory(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        assert f"process {owner.pid}" in str(refusal(tmp_path))
        owner.kill()
        owner.wait()
        lock = StateLock(tmp_path)
        assert f"process {os.getpid()}" in str(refusal(tmp_path))
        lock.release()


def test_a_child_does_not_inherit_the_directory(tmp_path: Path):
    lock = StateLock(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        StateLock(tmp_path).release()


def test_releasing_twice_is_harmless_to_the_next_owner(tmp_path: Path):
    lock = StateLock(tmp_path)
    lock.release()
    second = StateLock(tmp_path)
    lock.release()
    refusal(tmp_path)
    second.release()


def test_a_lock_file_without_a_name_still_locks(tmp_path: Path):
    lock = StateLock(tmp_path)
    (tmp_path / "lock").write_bytes(b"")
    assert "process unknown" in str(refusal(tmp_path))
    lock.release()


def test_an_owner_that_hangs_is_replaced_and_learns_of_it(tmp_path: Path):
    frozen = StateLock(tmp_path)
    assert frozen.is_held
    successor = StateLock(tmp_path, take_over=True)
    assert successor.took_over
    assert (frozen.is_held, successor.is_held) == (False, True)
    assert f"process {os.getpid()}" in str(refusal(tmp_path))
    frozen.release()
    refusal(tmp_path)
    successor.release()
    StateLock(tmp_path).release()
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_a_directory_that_nobody_holds_is_not_taken_from_anybody(tmp_path: Path):
    StateLock(tmp_path).release()
    lock = StateLock(tmp_path, take_over=True)
    assert not lock.took_over
    lock.release()
    assert not lock.is_held


def test_a_lock_whose_file_was_replaced_in_the_meantime_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flock, owners = fcntl.flock, []

    def overtaken(handle: int, operation: int) -> None:
        # Between the opening of the file and its locking, another process takes the directory.
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "lock").unlink()
        owners.append(StateLock(tmp_path))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    refusal(tmp_path)
    assert owners[0].is_held
    owners[0].release()
