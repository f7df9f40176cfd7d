"""What durability, many workers and a long past cost the server.

    python benchmarks/reliability.py [--quick] [--work FOLDER] [--out PAGE]

Every figure comes from a real server process over gRPC on the loopback interface; what it is held
against is measured beside it, on the same disk and within the same minute. Compare ratios.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from reliabilities.acknowledgements import acknowledgements
from reliabilities.heartbeats import heartbeats
from reliabilities.opening import opening
from shared.processes import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--work", type=Path, help="on the disk to be measured; default: temporary")
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    given = parser.parse_args()
    quick = given.quick
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# Reliability",
        "",
        f"Measured by `python benchmarks/reliability.py` on {machine()}. {intro}",
        "",
    ]
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        work = Path(folder)
        sizes = (1, 64) if quick else (1, 64, 512)
        lines += acknowledgements(work, sizes, repeats=3 if quick else 7)
        lines += heartbeats(work / "beats", num_workers=100 if quick else 1000, seconds=20.0)
        lines += opening(work / "past", num_rounds=300 if quick else 10_000, num_workers=4)
    given.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
