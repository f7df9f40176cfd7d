"""`python -m client_worker.healthcheck [FILE]`: exit code 0 if the server has answered of late.

A worker listens nowhere: what shows that it lives is the file that it touches at each answer
(`worker.alive_file`). It is found in FEDLORA_WORKER__ALIVE_FILE, as the image sets it; nothing but
the standard library is imported, so that a container can afford it every few seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

__all__ = ["LONGEST_SILENCE_SECONDS", "check", "main"]

LONGEST_SILENCE_SECONDS = 60.0
"""four heartbeats at `server.heartbeat_interval_seconds`'s default; an idle worker asks for every
other answer"""


def check(file: Path, *, now: float) -> str:
    """What is wrong; empty if nothing is.

    Args:
        file: touched at each answer.
        now: seconds since the epoch.
    """
    try:
        silence = now - file.stat().st_mtime
    except FileNotFoundError:
        return f"{file} is not there: the server has not answered yet"
    if silence > LONGEST_SILENCE_SECONDS:
        return (
            f"the server's last answer expected within {LONGEST_SILENCE_SECONDS:g} s, "
            f"got one {silence:.0f} s ago"
        )
    return ""


def main() -> int:
    """Prints what is wrong and returns the exit code."""
    file = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FEDLORA_WORKER__ALIVE_FILE", "")
    problem = check(Path(file), now=time.time()) if file else "worker.alive_file is not set"
    print(problem or "alive")  # noqa: T201
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
