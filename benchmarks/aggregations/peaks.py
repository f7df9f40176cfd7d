"""Peaks of memory while rounds are closed, in a process whose allocator keeps nothing.

    python peaks.py < rounds.json > megabytes.json

Blocks from 32 KiB on are given back to the system as soon as they are free (`MALLOC_...`, set by
`measured`), so that what is resident is what is in use. glibc only: elsewhere peaks are those of
the allocator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["measured"]


def measured(rounds: Sequence[dict[str, int | str]]) -> list[float]:
    """MB above the updates, of rounds of `layers`, `U`, `r`, `d` closed by `method`."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768"}
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[2])])
    answer = subprocess.run(
        [sys.executable, str(here)],
        input=json.dumps([*rounds]),
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(value) for value in json.loads(answer.stdout)]


def main() -> None:
    from aggregations.cohorts import closed, peak_above, round_of_size

    from aggregator_service.aggregation.composition import compose
    from aggregator_service.aggregation.registry import METHODS

    device = torch.device("cpu")
    found = []
    for given in json.load(sys.stdin):
        recipe = compose(METHODS[given["method"]])
        cohorts = round_of_size(given["d"], given["r"], given["U"], given["layers"], device)
        # The first round loads libraries.
        closed(recipe, cohorts[:2], given["r"], device)
        found.append(peak_above(lambda: closed(recipe, cohorts, given["r"], device), device))  # noqa: B023
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
