"""The page of `../certificate.py`: what was measured, in tables, below what was found, in words."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from certificates.figures import by_layer, by_round
from certificates.findings import findings
from certificates.measured import (
    AVERAGING,
    CAPPED,
    DIAGONALS,
    LEAST,
    SCALARS,
    Grid,
    Measured,
    Over,
    Pick,
    closed,
    error,
)
from certificates.rounds import Cell

__all__ = ["write_page"]

_DRAWN = (AVERAGING, SCALARS, DIAGONALS, LEAST)
_CELL = "alpha, clients, rank, steps"
_ABOUT_ROUNDS = (
    "The first table is what papers draw, the norm of the difference from the ideal mean T over "
    "the norm of T, averaged over the layers."
)
_ABOUT_CONCENTRATION = (
    "Concentration is the largest share that one client has in the coefficients p_u q_u of "
    "the product. Averaging has one too, where clients differ in size: max w^2 / sum w^2. The "
    "last two columns count layers, over all rounds and seeds: those where one client has "
    "over half, and those where the search won that began at a single client."
)
_ABOUT_LIVES = (
    "The middle federation again, each advanced by its own method from round 1 on: test "
    "accuracy of the published adapter, seed by seed, and norms (whole adapter): what was lost in "
    "publishing it, the least that any adapter of that rank loses of the same updates, and what "
    "the round would have changed had nothing been lost. The gauge decides which A and B stand "
    "for a product: balanced, the default of `optimal`, gives both the same norm; closest_a keeps "
    "A near the mean of the clients' A. It alters no error of its round, but how far the next "
    "round's steps carry."
)


def write_page(path: Path, *, middle: Cell, grid: Grid, own: Sequence[Measured]) -> None:
    """Writes the page, and the figures beside it.

    Args:
        path: of the page.
        middle: the federation that is shown round by round and layer by layer.
        grid: federations that advance by averaging, with every method measured.
        own: the middle federation advanced by a method of its own, with that method measured.
    """
    first, last = grid.rounds[0], grid.rounds[-1]
    pictures = {
        "by_round": by_round(
            {c: [grid.mean(middle, n, error(c, Over.LAYERS)) for n in grid.rounds] for c in _DRAWN},
            [str(n) for n in grid.rounds],
        ),
        "by_layer": by_layer(
            {c: grid.of_layers(middle, first, c) for c in _DRAWN}, title=f"round {first}"
        ),
    }
    for name, picture in pictures.items():
        path.with_name(f"{path.stem}_{name}.svg").write_text(picture)
    parts = [
        "# What averaging loses, on adapters from real training",
        _conditions(grid, own),
        "## What was found",
        "\n".join(f"- {sentence}" for sentence in findings(grid, middle, own)),
        "## By round",
        f"The middle federation: {_words(middle)}. {_ABOUT_ROUNDS}",
        *(_by_round(grid, middle, over) for over in Over),
        f"![Error by round]({path.stem}_by_round.svg)",
        "## By layer",
        f"Round {first} of the same federation, over |T| of each layer; means over each kind.",
        _by_kind(grid, middle, first),
        f"![Error by layer]({path.stem}_by_layer.svg)",
        "## Along each axis",
        "The first adapter is zero, so that in round 1 both denominators are one.",
        _by_cell(grid, first, Over.MODEL),
        _by_cell(grid, last, Over.MODEL),
        _by_cell(grid, last, Over.CHANGE),
        _shares(grid, first, last),
        "## Where scalars choose one client",
        _ABOUT_CONCENTRATION,
        _concentrations(grid),
        f'"{CAPPED}" is `max_concentration = 0.5`: solutions with a larger share are dropped.',
        "## Federations that live with their method",
        _ABOUT_LIVES,
        _lives(grid, middle, own),
    ]
    path.write_text("\n\n".join(parts) + "\n")


def _conditions(grid: Grid, own: Sequence[Measured]) -> str:
    trained = [m.round for m in (*grid.rows, *own)]
    minutes = sum(r.cpu_seconds for r in trained) / 60
    return (
        "Written by `python benchmarks/certificate.py`. The quickstart's model (MiniLM, 22 M "
        f"parameters, {len(grid.rows[0].of(AVERAGING).modules)} adapted layers), data, rates and "
        f"head, float32 on the wire, seeds {', '.join(map(str, grid.seeds))} (of run and "
        f"partition); every number is a mean over the seeds unless it says otherwise. "
        f"{len({(m.cell, m.seed) for m in (*grid.rows, *own)})} federations of "
        f"{len(grid.rounds)} rounds, {sum(len(r.weights) for r in trained)} local trainings: "
        f"{minutes:.0f} minutes of one core ({platform.machine()}, torch "
        f"{torch.__version__.split('+')[0]}). Weights are the numbers of examples. The federations "
        "advance by averaging A and B, and all methods are measured on the same updates."
        "\n\n"
        f"*{AVERAGING}*: `fedit`. *LoRA-FAIR*: `lora_fair`. *{SCALARS}*, *{DIAGONALS}*, "
        "*matrices*: `flora_na` with `coefficients` = scalar (the paper's), diagonal, full. "
        f"*{LEAST}*: the bound of Eckart and Young at that rank, which `optimal` and `matrices` "
        "reach."
    )


def _by_round(grid: Grid, cell: Cell, over: Over) -> str:
    columns = [*grid.methods, LEAST]
    rows = [
        [str(n), *(_percent(grid.mean(cell, n, error(c, over))) for c in columns)]
        for n in grid.rounds
    ]
    return f"{_capital(over.value)}:\n\n{_table(['round', *columns], rows)}"


def _by_cell(grid: Grid, number: int, over: Over) -> str:
    columns = [*grid.methods, LEAST]
    rows = [
        [_short(cell), *(_means(grid, cell, [number], error(c, over)) for c in columns)]
        for cell in grid.cells
    ]
    return f"Round {number}, {over.value}:\n\n{_table([_CELL, *columns], rows)}"


def _shares(grid: Grid, first: int, last: int) -> str:
    methods = grid.methods[1:]
    rows = [
        [_short(cell), *(_means(grid, cell, [first, last], closed(m)) for m in methods)]
        for cell in grid.cells
    ]
    return (
        "Share of the avoidable squared error that was avoided (averaging 0, the least possible "
        f"100 %), rounds {first} and {last}:\n\n{_table([_CELL, *methods], rows)}"
    )


def _by_kind(grid: Grid, cell: Cell, number: int) -> str:
    columns = [*grid.methods, LEAST]
    layers = {c: grid.of_layers(cell, number, c) for c in columns}
    kinds = dict.fromkeys(_kind(module) for module in layers[AVERAGING])
    rows = [
        [
            kind,
            *(
                _percent(statistics.fmean(v for m, v in layers[c].items() if _kind(m) == kind))
                for c in columns
            ),
        ]
        for kind in kinds
    ]
    return _table(["layers", *columns], rows)


def _kind(module: str) -> str:
    """A module's name without the number of its block."""
    return module.split(".layer.")[-1].split(".", 1)[-1]


def _concentrations(grid: Grid) -> str:
    rows = []
    for cell in grid.cells:
        measured = grid.of(cell)
        shares = [s for m in measured for s in m.layers(SCALARS, "concentration")]
        starts = [s for m in measured for s in m.layers(SCALARS, "winning_start")]
        rows.append(
            [
                _short(cell),
                _percent(statistics.fmean(m.averaging_concentration for m in measured)),
                _percent(statistics.median(shares)),
                _percent(max(shares)),
                f"{sum(s > 0.5 for s in shares)} of {len(shares)}",
                str(sum(s == 1 for s in starts)),
            ]
        )
    headings = ["averaging", "scalars, middle layer", "scalars, largest", "over half"]
    return _table([_CELL, *headings, "from one client"], rows)


def _lives(grid: Grid, middle: Cell, own: Sequence[Measured]) -> str:
    lives: dict[str, list[Measured]] = {"fedit": grid.of(middle)}
    for m in own:
        lives.setdefault(m.cell.label, []).append(m)
    rows = []
    for method, measured in lives.items():
        for n in grid.rounds:
            here = [m for m in measured if m.round.number == n]
            norms = [
                statistics.fmean(values)
                for values in zip(*((m.lost, m.least, m.changed) for m in here), strict=True)
            ]
            scores = ", ".join(_percent(m.round.accuracy or 0.0) for m in here)
            rows.append([method, str(n), scores, *(f"{x:.3f}" for x in norms)])
    return _table(["method", "round", "accuracy", "lost", "least", "changed"], rows)


def _means(grid: Grid, cell: Cell, rounds: Sequence[int], pick: Pick) -> str:
    return ", ".join(_percent(grid.mean(cell, n, pick)) for n in rounds)


def _words(cell: Cell) -> str:
    return (
        f"Dirichlet alpha {cell.alpha:g}, {cell.clients} clients, rank {cell.rank}, "
        f"{cell.steps} local steps of 32 examples a round"
    )


def _short(cell: Cell) -> str:
    return f"{cell.alpha:g}, {cell.clients}, {cell.rank}, {cell.steps}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
