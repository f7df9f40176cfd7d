"""One worker to a device, over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedlora.devices import device_lock
from fedlora.errors import FedLoraError, Reason

UUID = "GPU-11111111-aaaa"

HOLDER = """
import sys
from pathlib import Path
from fedlora.devices import device_lock
with device_lock(sys.argv[1], Path(sys.argv[2]), shared=sys.argv[3] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder, *, uuid: str = UUID, shared: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, uuid, str(folder), "shared" if shared else "alone"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_device_that_another_process_holds_is_refused_with_the_way_to_find_it(tmp_path):
    with holder(tmp_path), pytest.raises(FedLoraError) as caught:
        device_lock(UUID, tmp_path, wait_seconds=0).__enter__()
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert f"fuser -v {tmp_path / UUID}" in str(caught.value)


def test_another_device_is_free(tmp_path):
    with holder(tmp_path), device_lock("GPU-22222222-bbbb", tmp_path, wait_seconds=0):
        pass


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_leaves_the_device_free(tmp_path, signum):
    with holder(tmp_path) as process:
        process.send_signal(signum)
        process.wait(30)
        with device_lock(UUID, tmp_path, wait_seconds=0):
            pass


def test_one_that_is_about_to_let_go_is_waited_for(tmp_path):
    with holder(tmp_path) as process:
        process.stdin.close()
        with device_lock(UUID, tmp_path, wait_seconds=30):
            pass


def test_the_lock_ends_with_its_block(tmp_path):
    with device_lock(UUID, tmp_path):
        pass
    with holder(tmp_path):
        pass


def test_those_who_share_hold_it_together_and_not_with_one_who_does_not(tmp_path):
    with holder(tmp_path, shared=True):
        with device_lock(UUID, tmp_path, shared=True, wait_seconds=0):
            pass
        with pytest.raises(FedLoraError, match="share_device"):
            device_lock(UUID, tmp_path, wait_seconds=0).__enter__()


def test_other_users_workers_can_lock_too_and_a_link_is_not_followed(tmp_path):
    folder = tmp_path / "locks"
    previous = os.umask(0o077)
    try:
        with device_lock(UUID, folder):
            pass
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert (folder / UUID).stat().st_mode & 0o777 == 0o644
    (folder / "GPU-link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FedLoraError, match="device_lock_dir"):
        device_lock("GPU-link", folder).__enter__()


def test_the_name_of_an_older_instance_is_one_file(tmp_path):
    with device_lock("MIG-GPU-1/2/0", tmp_path):
        assert (tmp_path / "MIG-GPU-1-2-0").is_file()
