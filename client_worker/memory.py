"""How much memory a worker's device has free: of a GPU, or of this machine for this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

__all__ = ["free_bytes"]

_GROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")

_NO_LIMIT = 2**60
"""control groups of version 1 write a number near 2^63 for none"""


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


def free_bytes(device: str, *, groups: Path = _GROUPS, process: Path = _PROCESS) -> int:
    """Bytes that may still be taken.

    Args:
        device: as `client_worker.device.resolve_device` returned it.
        groups: where the control groups are mounted.
        process: the file that names this process's.
    """
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(0)
        return int(free)
    left = [int(psutil.virtual_memory().available)]
    for line in process.read_text().splitlines() if process.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            left += _left(groups, path, _SECOND)
        elif "memory" in controllers.split(","):
            left += _left(groups / "memory", path, _FIRST)
    return min(left)


def _left(root: Path, path: str, names: _Names) -> list[int]:
    """What the limits on a group and on those around it leave; a container has one."""
    left, inner = [], root / path.strip("/")
    for group in (inner, *inner.parents):
        limit, used = _number(group / names.limit), _number(group / names.used)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            # Files that were read fill a group up to its limit, and make room when it is needed.
            taken = used - _statistic(group / "memory.stat", names.reclaimable)
            left.append(max(0, limit - taken))
        if group == root:
            break
    return left


def _statistic(file: Path, name: str) -> int:
    lines = file.read_text().splitlines() if file.exists() else []
    values = dict(line.split(" ", 1) for line in lines)
    return int(values.get(name, 0))


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, as in "max"."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
