"""What a cell of a study takes, and how much of it is training.

    python benchmarks/study_cell.py [STUDY] [--cells N] [--out PAGE]

Runs the first cells of a study anew in a temporary folder, as many at a time as there are cores,
and writes what they took. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared.processes import machine

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    study = ROOT / "benchmarks" / "studies" / "heterogeneity.toml"
    parser.add_argument("study", nargs="?", type=Path, default=study)
    parser.add_argument("--cells", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "study"
        command = [sys.executable, "-m", "fedlora_cli", "study", given.study, "--plain"]
        places = ["--limit", str(given.cells), "--out", out, "--work-dir", Path(folder) / "work"]
        began = time.perf_counter()
        subprocess.run([*command, *places], check=True)
        elapsed = time.perf_counter() - began
        lines = (out / "results.jsonl").read_text().splitlines()
    cells = sorted((json.loads(line) for line in lines), key=lambda cell: cell["label"])
    name = given.study.resolve().relative_to(ROOT)
    page = [
        "# A cell of a study",
        "",
        (
            f"Measured by `python benchmarks/study_cell.py` on {machine()}, load {load:.1f} before "
            f"it began: the first {len(cells)} cells of `{name}`, side by side, one core each. "
            "*Training*: the steps of all workers. The rest is scoring, combining, certificates, "
            "the server's store and loading; Python's imports, which cells share, are in neither. "
            f"All of it took {elapsed:.0f} s."
        ),
        "",
        "| cell | seconds | training, seconds | of the cell |",
        "|---|---:|---:|---:|",
        *(
            f"| {cell['label']} | {cell['seconds']:.0f} | {cell['train_seconds']:.0f} | "
            f"{cell['train_seconds'] / cell['seconds']:.0%} |"
            for cell in cells
        ),
    ]
    given.out.write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
