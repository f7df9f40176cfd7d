"""TensorBoard's files hold each number once, whatever happened to a process or a disk."""

from __future__ import annotations

import builtins
import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.sample_run import sample_certificate, sample_round
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from aggregator_service.reporting.event_files import EventFiles, require_tensorboard
from fedlora.errors import FedLoraError, Reason

TIMES = {round: 1000.0 + round for round in range(1, 10)}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return [(s.step, s.value) for s in found.Scalars(tag)]


def test_a_number_stands_at_its_round_and_its_time(tmp_path: Path):
    report = replace(sample_round(2), metrics={"test_accuracy": 0.75})
    EventFiles(tmp_path).write([report], TIMES)
    found = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = found.Scalars("scores/test_accuracy")
    assert (scalar.step, scalar.value, scalar.wall_time) == (2, 0.75, 1002.0)
    assert scalars(tmp_path, "bytes/up") == [(2, float(report.bytes_up))]


def test_a_round_told_twice_is_written_once_and_its_certificate_later(tmp_path: Path):
    files, bare = EventFiles(tmp_path), sample_round(1, certified=False)
    files.write([bare], TIMES)
    files.write([bare], TIMES)
    certified = replace(bare, certificate=sample_certificate(1))
    files.write([certified, sample_round(2)], TIMES)
    assert [step for step, _ in scalars(tmp_path, "bytes/up")] == [1, 2]
    error = certified.certificate.overall.relative_error
    assert scalars(tmp_path, "certificate/relative_error")[0] == (1, pytest.approx(error, rel=1e-6))


def test_another_process_writes_only_what_is_missing(tmp_path: Path):
    EventFiles(tmp_path).write([sample_round(1), sample_round(2)], TIMES)
    EventFiles(tmp_path).write([sample_round(2), sample_round(3)], TIMES)
    assert len(list(tmp_path.iterdir())) == 2
    assert [step for step, _ in scalars(tmp_path, "bytes/up")] == [1, 2, 3]


def test_a_file_is_never_begun_in_the_place_of_one_that_is_there(tmp_path: Path):
    """Somebody has removed the first of two: what is in the second is kept."""
    EventFiles(tmp_path).write([sample_round(1)], TIMES)
    EventFiles(tmp_path).write([sample_round(2)], TIMES)
    min(tmp_path.iterdir()).unlink()
    EventFiles(tmp_path).write([sample_round(3)], TIMES)
    assert [step for step, _ in scalars(tmp_path, "bytes/up")] == [2, 3]


def test_half_a_record_of_a_killed_process_is_written_again(tmp_path: Path):
    EventFiles(tmp_path).write([sample_round(1), sample_round(2)], TIMES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    EventFiles(tmp_path).write([sample_round(1), sample_round(2)], TIMES)
    assert [step for step, _ in scalars(tmp_path, "bytes/up")] == [1, 2]


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path, monkeypatch):
    files = EventFiles(tmp_path)
    files.write([sample_round(1)], TIMES)
    opened = Path.open

    def full(self: Path, mode: str = "r", *arguments, **options):
        handle = opened(self, mode, *arguments, **options)
        if "b" in mode and "a" in mode:
            handle.write(b"half a rec")
            handle.close()
            raise OSError(28, "No space left on device")
        return handle

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space"):
        files.write([sample_round(2)], TIMES)
    monkeypatch.undo()
    files.write([sample_round(2), sample_round(3)], TIMES)
    assert [step for step, _ in scalars(tmp_path, "bytes/up")] == [1, 2, 3]


def test_what_is_no_number_is_left_out(tmp_path: Path):
    report = replace(sample_round(1), metrics={"test_loss": math.nan, "test_accuracy": 0.5})
    EventFiles(tmp_path).write([report], TIMES)
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()[SCALARS]
    assert "scores/test_accuracy" in tags
    assert "scores/test_loss" not in tags


def test_nothing_is_made_before_there_is_something_to_write(tmp_path: Path):
    EventFiles(tmp_path / "board").write([], {})
    assert not (tmp_path / "board").exists()


def test_without_the_package_the_extra_is_named(monkeypatch):
    found = builtins.__import__

    def missing(name: str, *arguments, **options):
        if name == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(FedLoraError, match=r"fedlora\[tracking\]") as caught:
        require_tensorboard()
    assert caught.value.reason is Reason.MISSING_EXTRA
