"""Free memory is the least of what the machine has and what the groups around the process leave."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from client_worker.memory import free_bytes

MB = 10**6


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1000 MB to spare."""

    class Memory:
        available = 1000 * MB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)


def group(folder: Path, limit: object, used: object, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def found(tmp_path: Path, line: str) -> int:
    process = tmp_path / "process"
    process.write_text(f"{line}\n")
    return free_bytes("cpu", groups=tmp_path / "root", process=process)


@pytest.mark.usefixtures("machine")
def test_a_machine_without_groups_has_what_it_has(tmp_path: Path):
    assert free_bytes("cpu", groups=tmp_path, process=tmp_path / "none") == 1000 * MB


@pytest.mark.usefixtures("machine")
def test_a_container_has_what_its_limit_leaves(tmp_path: Path):
    group(tmp_path / "root", 600 * MB, 200 * MB)
    assert found(tmp_path, "0::/") == 400 * MB


@pytest.mark.usefixtures("machine")
def test_the_limit_of_a_group_around_it_counts_too(tmp_path: Path):
    group(tmp_path / "root" / "a", 300 * MB, 250 * MB)
    group(tmp_path / "root" / "a" / "b", "max", 1 * MB)
    assert found(tmp_path, "0::/a/b") == 50 * MB


@pytest.mark.usefixtures("machine")
def test_more_than_the_machine_has_is_no_limit(tmp_path: Path):
    group(tmp_path / "root", 5000 * MB, 0)
    assert found(tmp_path, "0::/") == 1000 * MB


@pytest.mark.usefixtures("machine")
def test_files_that_were_read_take_nothing_away(tmp_path: Path):
    group(tmp_path / "root", 600 * MB, 590 * MB)
    lines = f"anon {150 * MB}\nactive_file {40 * MB}\ninactive_file {400 * MB}\n"
    (tmp_path / "root" / "memory.stat").write_text(lines)
    assert found(tmp_path, "0::/") == 410 * MB


@pytest.mark.usefixtures("machine")
def test_the_older_groups_are_read_and_their_word_for_none(tmp_path: Path):
    group(tmp_path / "root" / "memory", 2**63 - 4096, 7 * MB, version=1)
    group(tmp_path / "root" / "memory" / "job", 90 * MB, 60 * MB, version=1)
    assert found(tmp_path, "4:cpu,memory:/job") == 30 * MB


@pytest.mark.usefixtures("machine")
def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path):
    group(tmp_path / "root", 100 * MB, 101 * MB)
    assert found(tmp_path, "0::/") == 0


def test_a_gpu_has_what_its_driver_says_is_free(monkeypatch: pytest.MonkeyPatch):
    # The process sees the one device that it was given, as number 0.
    told = {0: (700 * MB, 1000 * MB)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", told.__getitem__)
    assert free_bytes("cuda:GPU-11111111-aaaa") == 700 * MB


def test_this_machine_has_some():
    assert 0 < free_bytes("cpu") <= psutil.virtual_memory().total
