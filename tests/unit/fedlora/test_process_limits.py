"""This process may have the least of what the machine has and the groups around it allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedlora.process_limits import available_cores, group_memory, memory_bytes

MB = 10**6

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def group(folder: Path, limit: object, used: object, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def found(tmp_path: Path, line: str) -> list[tuple[int, int]]:
    """Limits and what is left of them, from the inside out."""
    process = tmp_path / "process"
    process.write_text(f"{line}\n")
    groups = group_memory(groups=tmp_path / "root", process=process)
    least = min([MACHINE, *(g.limit_bytes for g in groups)])
    assert memory_bytes(groups=tmp_path / "root", process=process) == least
    return [(g.limit_bytes, g.left_bytes) for g in groups]


def test_a_machine_without_groups_has_what_it_has(tmp_path: Path):
    nowhere = {"groups": tmp_path, "process": tmp_path / "none"}
    assert group_memory(**nowhere) == []
    assert memory_bytes(**nowhere) == MACHINE


def test_a_container_has_its_limit_and_what_that_leaves(tmp_path: Path):
    group(tmp_path / "root", 600 * MB, 200 * MB)
    assert found(tmp_path, "0::/") == [(600 * MB, 400 * MB)]


def test_the_limit_of_a_group_around_it_counts_too(tmp_path: Path):
    group(tmp_path / "root" / "a", 300 * MB, 250 * MB)
    group(tmp_path / "root" / "a" / "b", "max", 1 * MB)
    assert found(tmp_path, "0::/a/b") == [(300 * MB, 50 * MB)]


def test_more_than_the_machine_has_is_no_limit(tmp_path: Path):
    group(tmp_path / "root", 2 * MACHINE, 0)
    assert found(tmp_path, "0::/") == [(2 * MACHINE, 2 * MACHINE)]


def test_files_that_were_read_take_nothing_away(tmp_path: Path):
    group(tmp_path / "root", 600 * MB, 590 * MB)
    lines = f"anon {150 * MB}\nactive_file {40 * MB}\ninactive_file {400 * MB}\n"
    (tmp_path / "root" / "memory.stat").write_text(lines)
    assert found(tmp_path, "0::/") == [(600 * MB, 410 * MB)]


def test_the_older_groups_are_read_and_their_word_for_none(tmp_path: Path):
    group(tmp_path / "root" / "memory", 2**63 - 4096, 7 * MB, version=1)
    group(tmp_path / "root" / "memory" / "job", 90 * MB, 60 * MB, version=1)
    assert found(tmp_path, "4:cpu,memory:/job") == [(90 * MB, 30 * MB)]


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path):
    group(tmp_path / "root", 100 * MB, 101 * MB)
    assert found(tmp_path, "0::/") == [(100 * MB, 0)]


def cores(tmp_path: Path, line: str) -> int:
    process = tmp_path / "process"
    process.write_text(f"{line}\n")
    return available_cores(groups=tmp_path / "root", process=process)


def quota(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{text}\n")


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("5000 100000", 1),
        ("9900000 100000", 16),
        ("max 100000", 16),
        ("", 16),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path: Path, text: str, expected: int):
    quota(tmp_path / "root", text)
    assert cores(tmp_path, "0::/") == expected


@pytest.mark.usefixtures("sixteen_cores")
def test_the_least_quota_around_it_counts(tmp_path: Path):
    quota(tmp_path / "root" / "a", "400000 100000")
    quota(tmp_path / "root" / "a" / "b", "600000 100000")
    assert cores(tmp_path, "0::/a/b") == 4


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("value", "expected"), [("300000", 3), ("-1", 16)])
def test_the_older_groups_quota(tmp_path: Path, value: str, expected: int):
    folder = tmp_path / "root" / "cpu" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{value}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(tmp_path, "4:cpuacct,cpu:/job") == expected


@pytest.mark.usefixtures("sixteen_cores")
def test_without_groups_there_are_the_cores_that_it_may_run_on(tmp_path: Path):
    assert available_cores(groups=tmp_path, process=tmp_path / "none") == 16


def test_this_process_may_have_some():
    assert 0 < memory_bytes() <= MACHINE
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
