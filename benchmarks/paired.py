"""Two figures of a study, paired by seed: any two variants, and two scores of one variant.

    python benchmarks/paired.py STUDY VARIANT.METRIC VARIANT.METRIC

For example `fedlora_optimizer pipeline.personal_accuracy local_only.personal_accuracy`: the mean of
the first minus the second over the seeds that have both, its 95 % interval, the two-sided p value
of Student's paired t test, and the differences. The page of a study has only those from its
baseline.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from fedlora_cli.study.statistics import compare

_STUDIES = Path(__file__).parent / "studies"


def _by_seed(study: str, figure: str) -> Mapping[int, float]:
    """The last round's figure of each seed."""
    variant, _, metric = figure.partition(".")
    found = {}
    for line in (_STUDIES / study / "results.jsonl").read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        label, _, seed = cell["label"].rpartition(", seed ")
        if label == variant and metric in cell["rounds"][-1]:
            found[int(seed)] = cell["rounds"][-1][metric]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("first", metavar="VARIANT.METRIC")
    parser.add_argument("second", metavar="VARIANT.METRIC")
    given = parser.parse_args()
    one, other = (_by_seed(given.study, figure) for figure in (given.first, given.second))
    found = compare(one, other)
    if found is None:
        parser.error(f"fewer than two seeds have both; {sorted(one)} and {sorted(other)}")
    print(
        f"{given.first} - {given.second}: {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], "
        f"p {found.p:.3f}, {found.count} seeds: "
        + " ".join(f"{one[seed] - other[seed]:+.4f}" for seed in sorted(one.keys() & other.keys()))
    )


if __name__ == "__main__":
    main()
