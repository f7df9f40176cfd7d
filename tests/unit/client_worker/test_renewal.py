"""A worker's certificate is renewed in time, by one that may, and not before."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest
from support.identities import Federation

from client_worker.renewal import Renewal
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.names import AccessRole

DAY = 86400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Federation(tmp_path).member(AccessRole.WORKER, "w-1", days=3)


class Asked:
    """What renews; fails so often first, with a server that is away and a disk that is full."""

    def __init__(self, failures: int = 0) -> None:
        self.times = 0
        self.enough = threading.Event()
        self._failures = failures

    def __call__(self) -> float:
        self.times += 1
        if self.times <= self._failures:
            if self.times % 2:
                raise FedLoraError(Reason.UNAVAILABLE, "the server is away")
            raise OSError(errno.ENOSPC, "no space left on device")
        self.enough.set()
        return 0.0


class Looks:
    """A clock that notes that it is read."""

    def __init__(self, now: float, times: int) -> None:
        self.now = now
        self.left = times
        self.enough = threading.Event()

    def __call__(self) -> float:
        self.left -= 1
        if self.left <= 0:
            self.enough.set()
        return self.now


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(folder: Path):
    asked = Asked()
    with Renewal(folder, asked, look_seconds=0.01, wall=lambda: time.time() + 2.1 * DAY):
        assert asked.enough.wait(10)


def test_a_younger_one_is_left_alone(folder: Path):
    asked, looks = Asked(), Looks(time.time() + 1.9 * DAY, times=6)
    with Renewal(folder, asked, look_seconds=0.01, wall=looks):
        assert looks.enough.wait(10)
    assert asked.times == 0


def test_it_is_tried_again_where_the_server_is_away_or_the_disk_full(folder: Path):
    asked = Asked(failures=3)
    with Renewal(folder, asked, look_seconds=0.01, wall=lambda: time.time() + 2.1 * DAY):
        assert asked.enough.wait(10)
    assert asked.times >= 4


def test_a_folder_that_somebody_else_renews_is_left_to_him(folder: Path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    asked = Asked()
    before = threading.active_count()
    with Renewal(folder, asked, look_seconds=0.0, wall=lambda: time.time() + 2.1 * DAY):
        assert threading.active_count() == before
    assert asked.times == 0


def test_a_renewal_that_hangs_does_not_hold_the_worker_that_ends(folder: Path):
    asked, answered = threading.Event(), threading.Event()

    def renew() -> float:
        asked.set()
        answered.wait()
        return 0.0

    with Renewal(folder, renew, look_seconds=0.01, wall=lambda: time.time() + 2.1 * DAY):
        assert asked.wait(30)
    answered.set()  # comes only after the end


def test_a_swap_that_a_kill_cut_off_is_finished(folder: Path):
    certificate = (folder / "tls.crt").read_bytes()
    (folder / ".next").mkdir()
    (folder / "tls.crt").rename(folder / ".next" / "tls.crt")
    with Renewal(folder, Asked()):
        assert (folder / "tls.crt").read_bytes() == certificate
        assert not (folder / ".next").exists()
