"""What the fault tests did, a line each: `make soak` makes docs/soak.md of it.

python fault_log.py LINES PAGE
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import defaultdict
from pathlib import Path

VARIABLE = "FEDLORA_FAULT_LOG"
"""file that lines are added to; none are where it is unset"""


def record(*, faults: int, acknowledged: int, lost: int, twice: int) -> None:
    """Notes what the test that runs now has seen."""
    path, test = os.environ.get(VARIABLE), os.environ.get("PYTEST_CURRENT_TEST", "by hand")
    if path:
        line = {
            "test": test.partition(" (")[0],
            "faults": faults,
            "acknowledged": acknowledged,
            "lost": lost,
            "twice": twice,
        }
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def page(lines: list[dict[str, object]]) -> str:
    """A table with a row per test function."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    for line in lines:
        name = str(line["test"]).partition("[")[0]
        numbers = [1, *(int(str(line[key])) for key in ("faults", "acknowledged", "lost", "twice"))]
        for group in (name, ""):
            totals[group] = [a + b for a, b in zip(totals[group], numbers, strict=True)]
    everything = totals.pop("", [0] * 5)
    rows = [
        f"| `{name.removeprefix('tests/faults/')}` | {' | '.join(f'{n:,}' for n in numbers)} |"
        for name, numbers in sorted(totals.items())
    ]
    return "\n".join(
        [
            "# Soak",
            "",
            "Written by `make soak`: every fault is one of the real server process or of its disk,",
            "every update an acknowledged one, held against the state directory afterwards. Python",
            f"{platform.python_version()}, {os.cpu_count()} cores.",
            "",
            "| test | histories | faults injected | updates acknowledged | lost | counted twice |",
            "|---|---|---|---|---|---|",
            *rows,
            f"| **all** | {' | '.join(f'**{n:,}**' for n in everything)} |",
            "",
        ]
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(page([json.loads(line) for line in source.read_text().splitlines()]))
