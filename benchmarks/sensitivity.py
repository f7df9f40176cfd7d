"""What local training moves: directions of A against B's, magnitudes of B against A's.

    python benchmarks/sensitivity.py [--out PAGE]

Read from the committed studies: a certificate says by how much a round's workers moved the lengths
and the directions of the rows of A and of the columns of B (`aggregation/sensitivity.py`). A first
round is left out, where B has no direction yet. FedLoRA-Optimizer (arXiv:2510.11274) reports 1.7
and 41 for its own definitions, which are not known to us. Each ratio is of sums over a cell's
rounds: mean over the cells (lowest to highest).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from shared.pages import write_page

_STUDIES = Path(__file__).parent / "studies"
_TITLE = "By study and variant"


def _cells(study: Path) -> Iterator[tuple[str, list[Mapping[str, float]]]]:
    """Variant and conditions of each cell, and what was measured in its rounds."""
    for line in (study / "results.jsonl").read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        rounds = [figures for figures in cell["rounds"] if "direction_change_b" in figures]
        yield cell["label"].rpartition(", seed")[0], rounds


def _ratio(rounds: Sequence[Mapping[str, float]], over: str, under: str) -> float:
    return sum(figures[over] for figures in rounds) / sum(figures[under] for figures in rounds)


def _shown(ratios: Sequence[float]) -> str:
    return f"{fmean(ratios):.2g} ({min(ratios):.2g} to {max(ratios):.2g})"


def _table() -> Iterator[str]:
    yield "| study | variant | cells | rounds | directions, A / B | magnitudes, B / A |"
    yield "|---|---|---:|---:|---:|---:|"
    for study in sorted(path.parent for path in _STUDIES.glob("*/results.jsonl")):
        by_variant = defaultdict(list)
        for variant, rounds in _cells(study):
            if rounds:
                by_variant[variant].append(rounds)
        for variant, cells in sorted(by_variant.items()):
            directions = [_ratio(r, "direction_change_a", "direction_change_b") for r in cells]
            magnitudes = [_ratio(r, "magnitude_change_b", "magnitude_change_a") for r in cells]
            yield (
                f"| {study.name} | `{variant}` | {len(cells)} | {sum(map(len, cells))} "
                f"| {_shown(directions)} | {_shown(magnitudes)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    head = ["# What local training moves", "", "Written by `python benchmarks/sensitivity.py`."]
    lines = [f"## {_TITLE}", "", text, "", *_table()]
    write_page(given.out, head, [_TITLE], {_TITLE: lines})


if __name__ == "__main__":
    main()
