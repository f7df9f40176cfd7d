"""How far from the ideal mean is each way of averaging, on adapters from real training?

    python benchmarks/certificate.py [--work FOLDER] [--rounds 4] [--seeds 0 1]

Trains small federations on the quickstart's data (`certificates/rounds.py`; about 20 minutes
of one core), then lets every method combine the SAME updates and measures what it publishes (three
minutes). Writes benchmarks/certificate.md and two figures beside it. With a --work that is kept, a
second call only measures.

The federations are one middle cell and its neighbours along each axis, not the full product (more
local steps with four clients only: they cost the most). They advance by plain averaging, so that
no method shapes the updates it is measured on. Three more advance by `flora_na` and by `optimal`,
to show what accumulates: `optimal` in two gauges, since the gauge changes no error of its round but
does change the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from certificates.measured import (
    AVERAGING,
    CAPPED,
    DIAGONALS,
    FAIR,
    MATRICES,
    SCALARS,
    Grid,
    Measured,
)
from certificates.page import write_page
from certificates.rounds import Cell, Round, train

from aggregator_service.aggregation import driver, registry
from fedlora.runs.method import Gauge, MethodSpec
from fedlora.runs.report import Certificate

MIDDLE = Cell(alpha=0.3, clients=10, rank=8)
NEIGHBOURS = (
    dataclasses.replace(MIDDLE, alpha=0.1),
    dataclasses.replace(MIDDLE, alpha=1.0),
    dataclasses.replace(MIDDLE, clients=4),
    dataclasses.replace(MIDDLE, rank=4),
    dataclasses.replace(MIDDLE, rank=16),
    dataclasses.replace(MIDDLE, clients=4, steps=20),
)
OWN = (
    dataclasses.replace(MIDDLE, method="flora_na"),
    dataclasses.replace(MIDDLE, method="optimal"),
    dataclasses.replace(MIDDLE, method="optimal", gauge=Gauge.CLOSEST_A),
)


METHODS: Mapping[str, MethodSpec] = {
    AVERAGING: MethodSpec(name="fedit"),
    FAIR: MethodSpec(name="lora_fair"),
    SCALARS: MethodSpec(name="flora_na"),
    CAPPED: MethodSpec(name="flora_na", options={"max_concentration": 0.5}),
    DIAGONALS: MethodSpec(name="flora_na", options={"coefficients": "diagonal"}),
    MATRICES: MethodSpec(name="flora_na", options={"coefficients": "full"}),
}
"""what is measured on every round, by its name on the page"""


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    if arguments.work is not None:
        _run(arguments, arguments.work)
        return
    with tempfile.TemporaryDirectory(prefix="fedlora-certificate-") as scratch:
        _run(arguments, Path(scratch))


def _run(arguments: argparse.Namespace, work: Path) -> None:
    rounds, seeds = arguments.rounds, arguments.seeds
    grid = [
        Measured(cell=cell, seed=seed, round=r, certificates=measured(r, METHODS))
        for cell in (MIDDLE, *NEIGHBOURS)
        for seed in seeds
        for r in train(cell, seed=seed, rounds=rounds, work=work, score=cell == MIDDLE)
    ]
    own = [
        Measured(cell=cell, seed=seed, round=r, certificates=measured(r, {cell.label: cell.spec}))
        for cell in OWN
        for seed in seeds
        for r in train(cell, seed=seed, rounds=rounds, work=work, score=True)
    ]
    write_page(arguments.output, middle=MIDDLE, grid=Grid(grid), own=own)


def measured(round: Round, methods: Mapping[str, MethodSpec]) -> dict[str, Certificate]:
    """What each method would have published, against the ideal mean of the same updates."""
    certificates = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, spec in methods.items():
            recipe = registry.create_recipe(spec)
            output = Path(scratch, "published.safetensors")
            outcome = driver.aggregate(
                round.contributions,
                recipe,
                output=output,
                context=round.context,
                output_scaling=round.scaling,
                seed=round.number,
            )
            certificates[name] = driver.certify(
                round.contributions,
                recipe,
                published=driver.StoredAdapter(path=output, scaling=round.scaling),
                context=round.context,
                measurements=outcome.measurements,
            )
    print(f"measured {round.folder}", flush=True)
    return certificates


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="keeps the trained adapters; default: a temporary folder"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    return parser


if __name__ == "__main__":
    main()
