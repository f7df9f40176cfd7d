"""What durability, many workers and a long past cost the server.

    python benchmarks/reliability.py [--quick] [--only SECTION ...] [--work FOLDER] [--out PAGE]

Every figure comes from a real server process over gRPC on the loopback interface; what it is held
against is measured beside it, on the same disk and within the same minute. Compare ratios.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from reliabilities.acknowledgements import acknowledgements
from reliabilities.heartbeats import heartbeats
from reliabilities.opening import opening
from shared.pages import write_page
from shared.processes import machine


def _acknowledgements(work: Path, quick: bool) -> list[str]:
    sizes = (1, 64) if quick else (1, 64, 512)
    return acknowledgements(work, sizes, repeats=3 if quick else 7)


def _heartbeats(work: Path, quick: bool) -> list[str]:
    return heartbeats(work / "beats", num_workers=100 if quick else 1000, seconds=15.0)


def _opening(work: Path, quick: bool) -> list[str]:
    return opening(work / "past", num_rounds=300 if quick else 10_000, num_workers=4)


SECTIONS: Mapping[str, Callable[[Path, bool], list[str]]] = {
    "acknowledgements": _acknowledgements,
    "heartbeats": _heartbeats,
    "opening": _opening,
}

TITLES = {
    "acknowledgements": "Acknowledgement",
    "heartbeats": "Heartbeats",
    "opening": "A long past",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--work", type=Path, help="on the disk to be measured; default: temporary")
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    given = parser.parse_args()
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    head = ["# Reliability", "", f"Measured by `python benchmarks/reliability.py`. {intro}"]
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        for name in given.only:
            title, *found = SECTIONS[name](Path(folder), given.quick)
            # Sections are measured one at a time, and not all on one machine.
            lines = [title, "", f"On {machine()}.", *found]
            write_page(given.out, head, list(TITLES.values()), {TITLES[name]: lines})


if __name__ == "__main__":
    main()
