from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aggregator_service.config import AggregatorConfig
from client_worker import healthcheck


def test_a_worker_that_was_answered_a_moment_ago_is_healthy(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    file.touch()
    answered = file.stat().st_mtime
    assert healthcheck.check(file, now=answered + 59) == ""


def test_a_silence_of_more_than_a_minute_is_told_in_seconds(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    file.touch()
    os.utime(file, (1000, 1000))
    assert "expected within 60 s, got one 61 s ago" in healthcheck.check(file, now=1061)


def test_a_worker_that_has_had_no_answer_yet_is_not_healthy(tmp_path: Path) -> None:
    assert "has not answered yet" in healthcheck.check(tmp_path / "alive", now=0)


@pytest.mark.parametrize("exists", [True, False])
def test_the_exit_code_says_it_to_the_engine(exists, tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "alive"
    if exists:
        file.touch()
    monkeypatch.setattr(sys, "argv", ["healthcheck"])
    monkeypatch.setenv("FEDLORA_WORKER__ALIVE_FILE", str(file))
    assert healthcheck.main() == (0 if exists else 1)
    assert capsys.readouterr().out.startswith("alive" if exists else str(file))


def test_a_worker_without_the_file_is_told_which_key_to_set(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["healthcheck"])
    monkeypatch.delenv("FEDLORA_WORKER__ALIVE_FILE", raising=False)
    assert healthcheck.main() == 1
    assert "worker.alive_file is not set" in capsys.readouterr().out


def test_the_longest_silence_is_four_heartbeats() -> None:
    beat = AggregatorConfig().heartbeat_interval_seconds
    assert 4 * beat == healthcheck.LONGEST_SILENCE_SECONDS
