"""Whole rounds, against a peer's on the same payload; and what a round costs besides its bytes."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transports.adapters import Adapter
from transports.federation import Rounds, rounds_of
from transports.peers.flower import PeerRounds, legacy_rounds, runtime_rounds, version
from transports.workers import Workers

from aggregator_service.reporting.scale import format_number

__all__ = ["Case", "whole_rounds"]


@dataclass(frozen=True, slots=True)
class Case:
    """Adapters of some workers, and how many rounds of each system are measured."""

    adapter: Adapter
    count: int
    rounds: int
    legacy_rounds: int
    runtime_rounds: int


def whole_rounds(
    folder: Path, pool: Workers, cases: Sequence[Case], flower: Path | None
) -> list[str]:
    """The section of the page.

    Args:
        folder: on the disk to be measured.
        pool: processes of the workers.
        cases: what to measure.
        flower: Python of the environment that has Flower; None leaves its rows out.
    """
    release = f"Flower {version(flower)}" if flower else "Flower"
    lines = [
        "## Whole rounds",
        "",
        (
            "Every worker pulls the adapter, changes every value, pushes it, and waits for the "
            "next version; the server averages the factors. Nothing is trained. Seconds from the "
            "beginning of a round to that of the next, medians, the first round left out. Here "
            "everything is durable before it is answered, and nothing is certified; Flower keeps "
            "rounds in memory. Server: CPU seconds per round, and the most "
            "private memory above what it has before the first, with its child processes. "
            + (
                f"*Runtime*: {release}, SuperLink, SuperNodes and `flwr run`, each as it is "
                f"installed. *Legacy*: `start_server` and `start_client` of the same release."
                if flower
                else f"{release} is not installed here, so its rows are left out "
                "(benchmarks/transports/peers/flower.py says how to install it)."
            )
        ),
        "",
        "| MB a worker | workers | system | ms a round | times ours | server CPU | server MB |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    ours: list[Rounds] = []
    for case in cases:
        mine = rounds_of(folder / "ours", pool, case.adapter, count=case.count, rounds=case.rounds)
        ours.append(mine)
        lines.append(_row(case, "fedlora", mine, mine.median))
        for name, measure, rounds in (
            (f"{release}, legacy", legacy_rounds, case.legacy_rounds),
            (f"{release}, runtime", runtime_rounds, case.runtime_rounds),
        ):
            if flower:
                try:
                    theirs = measure(
                        flower, folder / "flower", case.adapter, count=case.count, rounds=rounds
                    )
                except RuntimeError as error:
                    print(f"{name}: {error}", file=sys.stderr, flush=True)
                    size = f"{case.adapter.num_bytes / 1e6:.3g}"
                    lines.append(f"| {size} | {case.count} | {name} | did not finish | | | |")
                else:
                    lines.append(_row(case, name, theirs, mine.median))
    return [*lines, "", *_closing(cases, ours)]


def _row(case: Case, system: str, rounds: Rounds | PeerRounds, ours: float) -> str:
    line = (
        f"| {case.adapter.num_bytes / 1e6:.3g} | {case.count} | {system} | "
        f"{format_number(1e3 * rounds.median)} | {rounds.median / ours:.1f}x | "
        f"{rounds.server_cpu_seconds:.3g} | {rounds.server.above_idle / 1e6:,.0f} |"
    )
    print(line, flush=True)
    return line


def _closing(cases: Sequence[Case], ours: Sequence[Rounds]) -> list[str]:
    """From the last byte of a round to the first of the next."""
    lines = [
        (
            "Of fedlora's rounds, in ms: from the last byte that the last worker sends to the first"
            " that any worker gets of the new adapter; of it, the combining and publishing; and "
            "what is left for syncing, committing, telling and asking."
        ),
        "",
        ("| MB a worker | workers | last byte → first byte | combined and published | the rest |"),
        "|---:|---:|---:|---:|---:|",
    ]
    for case, rounds in zip(cases, ours, strict=True):
        rests = [h - c for h, c in zip(rounds.handovers, rounds.closes, strict=True)]
        cells = (rounds.handovers, rounds.closes, rests)
        lines.append(
            f"| {case.adapter.num_bytes / 1e6:.3g} | {case.count} | "
            + " | ".join(format_number(1e3 * statistics.median(of)) for of in cells)
            + " |"
        )
    return [*lines, ""]
