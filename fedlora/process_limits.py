"""What this process may take of its machine: memory and cores, all of them or a container's share.

A container is a control group with limits. The kernel ends the process that takes more memory, and
one that computes on more cores stands still for most of the time, however much the machine has.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GroupMemory", "available_cores", "group_memory", "memory_bytes"]

_GROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")

_NO_LIMIT = 2**60
"""control groups of version 1 write a number near 2^63 for none"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMemory:
    """The memory of a group with a limit."""

    limit_bytes: int
    left_bytes: int
    """of it; what was only read counts as left, since it makes room when that is needed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """Files of a control group, and the line of memory.stat with what the kernel can take back."""

    limit: str
    used: str
    reclaimable: str


_SECOND = _Names(limit="memory.max", used="memory.current", reclaimable="inactive_file")
_FIRST = _Names(
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
)


def memory_bytes(*, groups: Path = _GROUPS, process: Path = _PROCESS) -> int:
    """Bytes that this process may have at most.

    Args:
        groups: where the control groups are mounted.
        process: the file that names this process's.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (group.limit_bytes for group in group_memory(groups=groups, process=process))
    return min([machine, *limits])


def group_memory(*, groups: Path = _GROUPS, process: Path = _PROCESS) -> list[GroupMemory]:
    """The groups around this process whose memory has a limit; arguments as `memory_bytes`."""
    found = []
    for folder, is_first in _around(groups, process, "memory"):
        names = _FIRST if is_first else _SECOND
        limit, used = _number(folder / names.limit), _number(folder / names.used)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            # Files that were read fill a group up to its limit.
            taken = used - _statistic(folder / "memory.stat", names.reclaimable)
            found.append(GroupMemory(limit_bytes=limit, left_bytes=max(0, limit - taken)))
    return found


def available_cores(*, groups: Path = _GROUPS, process: Path = _PROCESS) -> int:
    """Cores that this process may use, a part of one counted whole; arguments as `memory_bytes`."""
    on_linux = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    for folder, is_first in _around(groups, process, "cpu"):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_first else ("cpu.max",)
        match [number for name in files for number in _numbers(folder / name)]:
            case [int(quota), int(period)]:
                cores = min(cores, max(1, math.ceil(quota / period)))
    return cores


def _around(groups: Path, process: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of the groups around this process, and whether they are of version 1."""
    for line in process.read_text().splitlines() if process.exists() else []:
        _, controllers, path = line.split(":", 2)
        is_first = controller in controllers.split(",")
        if not (is_first or not controllers):
            continue
        root = groups / controller if is_first else groups
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            yield folder, is_first
            if folder == root:
                break


def _statistic(file: Path, name: str) -> int:
    values = dict(line.split(" ", 1) for line in _text(file).splitlines())
    return int(values.get(name, 0))


def _number(file: Path) -> int | None:
    """The number in a file, None where there is none."""
    return next(iter(_numbers(file)), None)


def _numbers(file: Path) -> list[int | None]:
    """The numbers in a file, None for words that are none, such as "max" and -1."""
    return [int(word) if word.isdecimal() else None for word in _text(file).split()]


def _text(file: Path) -> str:
    """What is in a file, nothing where it is not there or not ours to read."""
    try:
        return file.read_text()
    except OSError:
        return ""
