"""docker/take-seat.sh: replicas get names that do not collide and come back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "take-seat.sh"

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock command")

Replica = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Replica, str]]]:
    """Starts a replica that tells its name and then waits; all are ended with the test."""
    started: list[Replica] = []

    def begin(**environment: str) -> tuple[Replica, str]:
        replica = subprocess.Popen(
            ["sh", str(SCRIPT), "sh", "-c", 'echo "$FEDLORA_WORKER__NAME"; exec cat'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PATH": os.environ["PATH"], "FEDLORA_SEATS": str(tmp_path / "seats"),
                 **environment},
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


def test_a_name_that_was_given_is_kept_and_takes_no_seat(start) -> None:
    assert start(FEDLORA_WORKER__NAME="hospital-a")[1] == "hospital-a"
    assert start()[1] == "worker-1"


def test_the_command_takes_the_place_of_the_script(start) -> None:
    replica, _ = start()
    replica.send_signal(signal.SIGTERM)
    assert replica.wait(timeout=20) == -signal.SIGTERM


def test_without_a_folder_for_the_seats_it_says_what_is_missing(start) -> None:
    done = subprocess.run(
        ["sh", str(SCRIPT), "true"], env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "FEDLORA_SEATS: names the folder of the seats" in done.stderr
