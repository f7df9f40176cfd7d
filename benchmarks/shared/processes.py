"""What the kernel knows of processes: CPU time, private memory, and the most of it."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "Watched", "commit", "cpu_seconds", "machine", "private_bytes", "processor", "tree", "watched",
]  # fmt: skip


def processor() -> str:
    """The processor's name; its architecture where the system tells no more."""
    with contextlib.suppress(OSError, StopIteration):
        text = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x for x in text if x.startswith("model name")).partition(":")[2].strip()
    return platform.machine()


def machine() -> str:
    """The processor and how many cores there are of it."""
    return f"{processor()}, {os.cpu_count()} cores"


def commit() -> str:
    """The checkout that is measured, with `-dirty` if its code differs; "unknown" for none."""

    def git(*words: str | Path) -> str:
        command = ["git", "-C", Path(__file__).parent, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # The pages that are being written are no part of what is measured.
    changed = git("status", "--porcelain", "--", ":/*.py", ":/*.toml", ":/*.proto")
    named = git("rev-parse", "--short", "HEAD")
    return (named + ("-dirty" if changed else "")) or "unknown"


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken, in all threads; its children's are theirs."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def private_bytes(pid: int) -> int:
    """RssAnon: neither page cache nor mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("RssAnon:")).split()[1])


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    root = psutil.Process(pid)
    return [pid, *(child.pid for child in root.children(recursive=True))]


@dataclass(slots=True)
class Watched:
    """What some processes took together while they were watched."""

    idle_bytes: int = 0
    """private memory when the watching began"""
    peak_bytes: int = 0
    """the most private memory that was seen"""
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    """how long they were watched"""

    @property
    def above_idle(self) -> int:
        """Bytes of private memory that came on top."""
        return self.peak_bytes - self.idle_bytes


@contextmanager
def watched(pids: Callable[[], list[int]], *, every: float = 0.01) -> Iterator[Watched]:
    """Watches processes, which may come and go; looks every so many seconds."""
    found, ended = Watched(), threading.Event()
    first: dict[int, float] = {}
    last: dict[int, float] = {}

    def look() -> int:
        memory = 0
        for pid in pids():
            # One that ends between the listing and the look has told all that it will.
            with contextlib.suppress(OSError, StopIteration):
                memory += private_bytes(pid)
                last[pid] = cpu_seconds(pid)
        found.peak_bytes = max(found.peak_bytes, memory)
        return memory

    def watch() -> None:
        while not ended.wait(every):
            look()

    found.idle_bytes, began = look(), time.perf_counter()
    first.update(last)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        look()
        found.seconds = time.perf_counter() - began
        found.cpu_seconds = sum(last.values()) - sum(first.values())
