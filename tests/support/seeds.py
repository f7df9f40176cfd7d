"""Seeds of random tests: those that have failed once, then more.

In CI the rest is the same in every run; a long test draws new ones each time. Whatever fails shows
its seed in the test's name; `tests/faults/README.md` says how it is kept.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

__all__ = ["seeds_for"]

REGRESSIONS = Path(__file__).parents[1] / "faults" / "regressions.json"


def seeds_for(
    test: str, count: int, *, fresh: bool = False, regressions: Path = REGRESSIONS
) -> list[int]:
    """Seeds for `pytest.mark.parametrize("seed", ...)`.

    Args:
        test: the test's name; what is recorded for it comes first.
        count: how many more.
        fresh: other ones in each run.
        regressions: a list of `{"test": name, "seed": number}`.
    """
    recorded = [r["seed"] for r in json.loads(regressions.read_text()) if r["test"] == test]
    # Processes of one parallel run must draw the same: they have to collect the same tests.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", time.time_ns()) if fresh else "every run"
    draw = random.Random(f"{test} {run}")
    return [*recorded, *(draw.randrange(2**32) for _ in range(count))]
