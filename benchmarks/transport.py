"""What moving adapters costs: rounds, bytes, memory, many workers; against peers and bare streams.

    python benchmarks/transport.py [--quick] [--only SECTION ...] [--work FOLDER]
                                   [--flower-python PYTHON] [--out PAGE]

A real server process and real worker processes on one machine, over the loopback interface, with
the worker's own client and with everything durable; only training is left out, and certificates
but where memory is measured. The ratios of a section come from one run of it, on one disk: compare
these.

The sections are rounds, bytes, fetches, memory, many and curves; those that are not measured keep
what the page says of them. Flower is measured where --flower-python, or FEDLORA_FLOWER_PYTHON,
names the Python of an environment that has it (benchmarks/transports/peers/flower.py).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from shared.pages import write_page
from shared.processes import commit, machine
from transports.adapters import LARGE, MEGABYTE, MIDDLE, SMALL, TINY
from transports.crowd import crowd
from transports.curves import curves
from transports.fetches import fetches
from transports.memory import memory
from transports.throughput import throughput
from transports.whole_rounds import Case, whole_rounds
from transports.workers import Workers, workers

TITLES = {
    "rounds": "Whole rounds",
    "bytes": "Bytes per second",
    "fetches": "Many downloads",
    "memory": "Memory",
    "many": "Many workers",
    "curves": "Round time",
}
NUM_WORKERS = 8


def rounds_section(folder: Path, pool: Workers, given: argparse.Namespace) -> list[str]:
    full = [
        Case(TINY, 2, rounds=20, legacy_rounds=20, runtime_rounds=3),
        Case(MIDDLE, NUM_WORKERS, rounds=8, legacy_rounds=3, runtime_rounds=2),
        Case(LARGE, NUM_WORKERS, rounds=4, legacy_rounds=2, runtime_rounds=1),
    ]
    quick = [
        Case(TINY, 2, rounds=20, legacy_rounds=20, runtime_rounds=1),
        Case(MIDDLE, NUM_WORKERS, rounds=3, legacy_rounds=1, runtime_rounds=1),
    ]
    return whole_rounds(folder, pool, quick if given.quick else full, given.flower_python)


def bytes_section(folder: Path, pool: Workers, given: argparse.Namespace) -> list[str]:
    sizes = [MIDDLE] if given.quick else [MIDDLE, LARGE]
    repeats = 1 if given.quick else 3
    return throughput(folder, pool, sizes, count=NUM_WORKERS, repeats=repeats)


def fetches_section(folder: Path, pool: Workers, given: argparse.Namespace) -> list[str]:
    return fetches(folder, pool, MEGABYTE, count=100 if given.quick else 1000)


def memory_section(folder: Path, pool: Workers, given: argparse.Namespace) -> list[str]:
    if given.quick:
        rows = [(SMALL, 8, "fedit"), (SMALL, 32, "fedit"), (SMALL, 16, "optimal")]
    else:
        rows = [(LARGE, 8, "fedit"), (LARGE, 64, "fedit"), (MIDDLE, 100, "optimal")]
    return memory(folder, pool, rows)


def many_section(folder: Path, pool: Workers, given: argparse.Namespace) -> list[str]:
    count, cohort, rounds = (100, 10, 3) if given.quick else (1000, 50, 10)
    return crowd(folder, pool, MEGABYTE, count=count, cohort=cohort, rounds=rounds)


def curves_section(folder: Path, pool: Workers, given: argparse.Namespace) -> list[str]:
    return curves(
        folder,
        pool,
        counts=(2, 4, 8) if given.quick else (2, 4, 8, 16, 32),
        layers=(8, 16, 32) if given.quick else (8, 16, 32, 64, 128),
        rounds=2 if given.quick else 4,
        plot=given.out.with_suffix(".svg"),
    )


SECTIONS: dict[str, Callable[[Path, Workers, argparse.Namespace], list[str]]] = {
    "rounds": rounds_section,
    "bytes": bytes_section,
    "fetches": fetches_section,
    "memory": memory_section,
    "many": many_section,
    "curves": curves_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--work", type=Path, help="on the disk to be measured; default: temporary")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flower = os.environ.get("FEDLORA_FLOWER_PYTHON")
    parser.add_argument("--flower-python", type=Path, default=Path(flower) if flower else None)
    given = parser.parse_args()
    if given.flower_python:
        # Its processes run in folders of their own.
        given.flower_python = given.flower_python.absolute()
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    command = "python benchmarks/transport.py" + (" --quick" if given.quick else "")
    head = ["# Transport", "", f"Measured by `{command}`. {intro}"]
    # Now: the page itself will be one of the files that differ.
    measured = commit()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        folder = Path(work)
        with workers(folder, processes=NUM_WORKERS) as pool:
            for name in given.only:
                load = os.getloadavg()[1]
                found = SECTIONS[name](folder, pool, given)
                place = f"On {machine()}, at commit {measured}"
                found += [f"{place}, with a load of {load:.1f} from before.", ""]
                # At once: what is measured is kept, whatever becomes of the next.
                write_page(given.out, head, list(TITLES.values()), {TITLES[name]: found})


if __name__ == "__main__":
    main()
