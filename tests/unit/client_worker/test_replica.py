"""Replicas of one service get names that do not collide, come back, and find their identities."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client_worker.replica import IDENTITIES_VARIABLE, SEATS_VARIABLE, settings_of

Replica = subprocess.Popen[str]

STANDIN = """
import os, sys
import client_worker.replica as replica

def work():
    print(os.environ["FEDLORA_WORKER__NAME"], os.environ.get("FEDLORA_WORKER__IDENTITY_DIR", ""))
    sys.stdout.flush()
    sys.stdin.read()
    return 3

replica.work = work
sys.exit(replica.main())
"""
"""a replica whose work is to tell who it is and to wait"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Replica, str]]]:
    """Starts a replica that tells who it is and then waits; all are ended with the test."""
    started: list[Replica] = []

    def begin(**variables: str) -> tuple[Replica, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDLORA_")}
        replica = subprocess.Popen(
            [sys.executable, "-c", STANDIN],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**kept, SEATS_VARIABLE: str(tmp_path / "seats"), **variables},
        )  # fmt: skip
        started.append(replica)
        assert replica.stdout is not None
        return replica, replica.stdout.readline().strip()

    yield begin
    for replica in started:
        replica.kill()
        replica.communicate()


def test_replicas_that_live_together_have_different_names(start) -> None:
    assert [start()[1] for _ in range(3)] == ["worker-1", "worker-2", "worker-3"]


def test_the_seat_of_a_killed_replica_is_free_at_once_and_others_keep_theirs(start) -> None:
    replicas = [start()[0] for _ in range(3)]
    replicas[1].kill()
    replicas[1].wait()
    assert start()[1] == "worker-2"
    assert start()[1] == "worker-4"


def test_a_name_that_was_given_is_kept_and_takes_no_seat(start, tmp_path: Path) -> None:
    assert start(FEDLORA_WORKER__NAME="hospital-a")[1] == "hospital-a"
    assert not (tmp_path / "seats").exists()


def test_the_exit_code_is_the_workers(start) -> None:
    replica, _ = start()
    replica.communicate()
    assert replica.returncode == 3


def test_a_replica_finds_its_identity_by_its_name(start) -> None:
    assert start(**{IDENTITIES_VARIABLE: "/identities"})[1] == "worker-1 /identities/worker-1"


def test_an_identity_that_was_given_is_kept() -> None:
    given = {IDENTITIES_VARIABLE: "/identities", "FEDLORA_WORKER__IDENTITY_DIR": "/mine"}
    assert "FEDLORA_WORKER__IDENTITY_DIR" not in settings_of("worker-1", given)


def test_without_a_folder_for_the_seats_it_says_what_is_missing(start) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDLORA_")}
    done = subprocess.run(
        [sys.executable, "-m", "client_worker.replica"], env=kept,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"expected the folder of the seats in {SEATS_VARIABLE}, got none" in done.stderr
