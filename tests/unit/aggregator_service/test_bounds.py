"""A server's bounds follow from its configuration and, where that says nothing, its machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from aggregator_service import bounds
from aggregator_service.bounds import admission_rules, pace_rules
from aggregator_service.config import AggregatorConfig
from fedlora.errors import FedLoraError
from fedlora.rpc.channel import MAX_CHUNK_BYTES, STREAM_WINDOW_BYTES


def config(folder: Path, **settings: Any) -> AggregatorConfig:
    return AggregatorConfig(state_dir=folder, **settings)


def test_by_default_the_windows_of_all_streams_fit_into_a_quarter_of_the_memory(tmp_path: Path):
    rules = admission_rules(config(tmp_path))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= rules.max_uploads <= 512
    assert (rules.max_uploads + rules.max_waiting) * STREAM_WINDOW_BYTES <= memory / 4


def test_a_container_has_as_many_as_its_own_memory_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bounds, "memory_bytes", lambda: 80 * STREAM_WINDOW_BYTES)
    rules = admission_rules(config(tmp_path))
    assert 10 <= rules.max_uploads + rules.max_waiting <= 20


def test_by_default_no_more_is_taken_than_half_of_what_is_free(tmp_path: Path):
    rules = admission_rules(config(tmp_path))
    assert 0 < rules.max_bytes < shutil.disk_usage(tmp_path).total / 2


def test_what_is_set_counts(tmp_path: Path):
    settings = {"max_uploads": 8, "max_upload_bytes": 1000, "upload_wait_seconds": 3.0}
    rules = admission_rules(config(tmp_path, **settings))
    assert (rules.max_uploads, rules.max_bytes, rules.wait_seconds) == (8, 1000, 3.0)
    assert rules.max_waiting == 2


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"min_bytes_per_second": MAX_CHUNK_BYTES / 16}, 16.0),
        ({"min_bytes_per_second": 1.0}, 30.0),
        ({"min_bytes_per_second": 1.0, "idle_timeout_seconds": 5.0}, 5.0),
        ({"min_bytes_per_second": 1.0, "min_rate_seconds": 7.0}, 7.0),
    ],
)
def test_nobody_loses_a_place_while_a_chunk_is_on_its_way_at_the_least_rate(
    tmp_path: Path, settings: dict[str, float], seconds: float
):
    assert admission_rules(config(tmp_path, **settings)).behind_seconds == seconds


def test_a_transfer_is_held_to_what_is_set(tmp_path: Path):
    rules = pace_rules(config(tmp_path, upload_deadline_seconds=99.0, min_rate_seconds=7.0))
    assert (rules.deadline_seconds, rules.rate_seconds) == (99.0, 7.0)
    assert (rules.idle_timeout_seconds, rules.min_bytes_per_second) == (30.0, 65536.0)


@pytest.mark.parametrize("name", ["max_uploads", "upload_wait_seconds", "upload_deadline_seconds"])
def test_bounds_are_not_negative(tmp_path: Path, name: str):
    with pytest.raises(FedLoraError, match=f"server.{name} must not be negative, got -1"):
        config(tmp_path, **{name: -1})


def test_event_files_need_run_directories(tmp_path: Path):
    with pytest.raises(FedLoraError, match=r"server\.tensorboard") as caught:
        config(tmp_path, tensorboard=True)
    assert "server.export_dir" in str(caught.value)
    assert config(tmp_path, tensorboard=True, export_dir=tmp_path).tensorboard
