"""Many registered workers, of whom each round asks some: submissions a second, and their waits."""

from __future__ import annotations

import statistics
from pathlib import Path

from shared.processes import watched
from transports.adapters import Adapter, run_of
from transports.federation import federation
from transports.workers import Workers

__all__ = ["crowd"]


def crowd(
    folder: Path, pool: Workers, adapter: Adapter, *, count: int, cohort: int, rounds: int
) -> list[str]:
    """The section of the page; a first round is run and left out."""
    spec = run_of(adapter, workers=count, cohort=cohort, rounds=rounds + 1)
    with federation(folder / "crowd", pool, adapter, spec, count) as served:
        with watched(lambda: [served.pid]) as process:
            notes = [n for of in pool.all("run").of for n in of]
        pool.all("end")
    by_round = [[n for n in notes if n["round"] == r + 2] for r in range(rounds)]
    began = min(n["pull_began"] for n in by_round[0])
    ended = max(n["push_ended"] for n in by_round[-1])
    measured = [n for of in by_round for n in of]
    windows = [
        len(of) / (max(n["push_ended"] for n in of) - min(n["push_began"] for n in of))
        for of in by_round
    ]
    acks = sorted(n["push_ended"] - n["last_byte"] for n in measured)
    whole = sorted(n["push_ended"] - n["push_began"] for n in measured)
    rows = {
        "submissions a second, over whole rounds": f"{len(measured) / (ended - began):.0f}",
        "submissions a second, while a round's come in": f"{statistics.median(windows):.0f}",
        "seconds a round": f"{(ended - began) / rounds:.2f}",
        "last byte → acknowledged, ms, median and 99th percentile": _quantiles(acks),
        "whole submission, ms, median and 99th percentile": _quantiles(whole),
        "server CPU, of one core": f"{process.cpu_seconds / process.seconds:.0%}",
        "server's private memory above idle, MB": f"{process.above_idle / 1e6:.0f}",
    }
    lines = [
        "## Many workers",
        "",
        (
            f"{count:,} registered workers, each with a connection and a long poll of its own, "
            f"from {pool.num_processes} processes; every round asks {cohort} of them, which pull "
            f"and push adapters of {adapter.num_bytes / 1e6:.2g} MB; {rounds} rounds of factor "
            "averaging, one before them left out."
        ),
        "",
        "| | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
    print("\n".join(lines), flush=True)
    return lines


def _quantiles(sorted_seconds: list[float]) -> str:
    last = len(sorted_seconds) - 1
    return " / ".join(f"{1e3 * sorted_seconds[round(q * last)]:.0f}" for q in (0.5, 0.99))
