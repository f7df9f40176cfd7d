"""What was found, in sentences. The words follow the numbers, which way they may fall."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from certificates.measured import (
    AVERAGING,
    CAPPED,
    DIAGONALS,
    FAIR,
    LEAST,
    SCALARS,
    Grid,
    Measured,
    Over,
    closed,
    error,
)
from certificates.rounds import Cell

__all__ = ["findings"]


def findings(grid: Grid, middle: Cell, own: Sequence[Measured]) -> list[str]:
    """One finding a sentence or two; arguments as for `page.write_page`."""
    return [
        _by_round(grid, middle),
        _against_change(grid, middle),
        _by_method(grid),
        _in_per_cent(grid),
        _worst_cell(grid),
        _concentration(grid),
        _seeds(grid),
        *_lives(grid, middle, own),
    ]


def _by_round(grid: Grid, cell: Cell) -> str:
    first, last = grid.rounds[0], grid.rounds[-1]
    values = {
        (c, n): _percent(grid.mean(cell, n, error(c, Over.LAYERS)))
        for c in (AVERAGING, SCALARS, DIAGONALS, LEAST)
        for n in (first, last)
    }
    shown = "; ".join(
        f"round {n}: averaging {values[AVERAGING, n]}, scalars {values[SCALARS, n]}, "
        f"diagonals {values[DIAGONALS, n]}, least possible {values[LEAST, n]}"
        for n in (first, last)
    )
    return f"Middle federation, over |T|, mean over layers. {_capital(shown)}."


def _against_change(grid: Grid, cell: Cell) -> str:
    first, last = grid.rounds[0], grid.rounds[-1]
    over_t, over_change = (
        [grid.mean(cell, n, error(AVERAGING, over)) for n in (first, last)]
        for over in (Over.MODEL, Over.CHANGE)
    )
    falls = over_t[1] < over_t[0]
    keeps = over_change[1] > 0.75 * over_change[0]
    text = (
        f"Over |T| the error of averaging {'falls' if falls else 'does not fall'} with the rounds "
        f"({_percent(over_t[0])} to {_percent(over_t[1])}, whole adapter); over what the round "
        f"changed it {'does not' if keeps else 'does too'} ({_percent(over_change[0])} to "
        f"{_percent(over_change[1])})."
    )
    if falls and keeps:
        text += " T grows, and hides that every round loses about the same share of what it learns."
    return text


def _by_method(grid: Grid) -> str:
    first, last = grid.rounds[0], grid.rounds[-1]
    shares = "; ".join(
        f"{method}: {_span(grid.mean(c, first, closed(method)) for c in grid.cells)}, then "
        f"{_span(grid.mean(c, last, closed(method)) for c in grid.cells)}"
        for method in (FAIR, SCALARS, DIAGONALS)
    )
    return (
        "Share of the avoidable squared error that is avoided, from the least to the most over "
        f"the federations, round {first} and then round {last}. {shares}. Full matrices: all of it."
    )


def _in_per_cent(grid: Grid) -> str:
    first, last = grid.rounds[0], grid.rounds[-1]
    gains = {
        (column, n): _span(
            1
            - grid.mean(c, n, error(column, Over.MODEL))
            / grid.mean(c, n, error(AVERAGING, Over.MODEL))
            for c in grid.cells
        )
        for column in (SCALARS, DIAGONALS, LEAST)
        for n in (first, last)
    }
    return (
        f"In plain error (whole adapter) that is: scalars are {gains[SCALARS, first]} below "
        f"averaging in round {first} and {gains[SCALARS, last]} in round {last}; diagonals "
        f"{gains[DIAGONALS, first]} and {gains[DIAGONALS, last]}; no adapter of that rank could be "
        f"more than {gains[LEAST, first]} and {gains[LEAST, last]} below."
    )


def _worst_cell(grid: Grid) -> str:
    first = grid.rounds[0]
    errors = {c: grid.mean(c, first, error(AVERAGING, Over.MODEL)) for c in grid.cells}
    worst, best = max(errors, key=errors.__getitem__), min(errors, key=errors.__getitem__)
    by_alpha = sorted((c.alpha, e) for c, e in errors.items() if _differs_in_alpha(c, grid))
    alphas = ", ".join(f"{_percent(e)} at alpha {a:g}" for a, e in by_alpha)
    minor = _range(e for _, e in by_alpha) < 0.5 * _range(errors.values())
    return (
        f"Averaging loses most in round {first} with {_words(worst)} ({_percent(errors[worst])}) "
        f"and least with {_words(best)} ({_percent(errors[best])}). How unequal the data are is "
        f"{'the lesser part of that' if minor else 'a large part of that'}: {alphas}."
    )


def _concentration(grid: Grid) -> str:
    rows = grid.rows
    over = sum(s > 0.5 for m in rows for s in m.layers(SCALARS, "concentration"))
    single = sum(s == 1 for m in rows for s in m.layers(SCALARS, "winning_start"))
    layers = sum(len(m.of(SCALARS).modules) for m in rows)
    unequal = [m for m in rows if m.averaging_concentration > 0.5]
    explained = sum(s > 0.5 for m in unequal for s in m.layers(SCALARS, "concentration"))
    shift = statistics.fmean(
        statistics.median(m.layers(SCALARS, "concentration")) - m.averaging_concentration
        for m in rows
    )
    first = grid.rounds[0]
    kept = [
        (grid.mean(c, first, closed(SCALARS)), grid.mean(c, first, closed(CAPPED)))
        for c in grid.cells
    ]
    costly = sum(capped < 0.5 * free for free, capped in kept)
    return (
        f"One client holds over half of the scalars' coefficients in {over} of {layers} layers; "
        f"in {explained} of them one client's data alone give it over half under plain averaging "
        f"too. Scalars add {100 * shift:.1f} points to the largest share. The search that begins "
        f"at a single client won in {single} layers. Capping the share at a half costs "
        f"scalars more than half of their gain in {costly} of {len(kept)} federations."
    )


def _seeds(grid: Grid) -> str:
    pick = error(AVERAGING, Over.MODEL)
    spreads = [
        _range(pick(m) for m in grid.of(c, n)) / grid.mean(c, n, pick)
        for c in grid.cells
        for n in grid.rounds
    ]
    gains = [1 - error(SCALARS, Over.MODEL)(m) / pick(m) for m in grid.rows]
    return (
        f"With {len(grid.seeds)} seeds: averaging's error differs between them by up to "
        f"{_percent(max(spreads))} of itself. Single rounds, whole adapter: scalars are "
        f"{_span(gains)} below averaging on the same updates."
    )


def _lives(grid: Grid, middle: Cell, own: Sequence[Measured]) -> Iterable[str]:
    last = grid.rounds[-1]
    lives = {"fedit": grid.of(middle, last)}
    for m in own:
        if m.round.number == last:
            lives.setdefault(m.cell.label, []).append(m)
    scores = {name: [m.round.accuracy or 0.0 for m in rows] for name, rows in lives.items()}
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    between, within = _range(means.values()), max(_range(v) for v in scores.values())
    yield (
        f"Test accuracy after round {last}: "
        + "; ".join(f"{name} {_percent(mean)}" for name, mean in means.items())
        + f". The methods differ by {100 * between:.1f} points, the seeds of one method by up to "
        f"{100 * within:.1f}: "
        + ("no difference was shown." if between < within else "more than the seeds do.")
    )
    norms = "; ".join(
        f"{name} {statistics.fmean(m.lost for m in rows):.3f} and "
        f"{statistics.fmean(m.changed for m in rows):.2f}"
        for name, rows in lives.items()
    )
    yield (
        f"Federations that live with their method, norms of what round {last} lost and of what it "
        f"changed: {norms}. An error over the change compares methods only where the changes are "
        "alike; the gauge in which a product is published alters no error, but how far the next "
        "round's steps carry."
    )


def _differs_in_alpha(cell: Cell, grid: Grid) -> bool:
    middle = grid.cells[0]
    return (cell.clients, cell.rank, cell.steps) == (middle.clients, middle.rank, middle.steps)


def _words(cell: Cell) -> str:
    return (
        f"alpha {cell.alpha:g}, {cell.clients} clients, rank {cell.rank} and {cell.steps} local "
        "steps"
    )


def _range(values: Iterable[float]) -> float:
    known = list(values)
    return max(known) - min(known)


def _span(values: Iterable[float]) -> str:
    known = sorted(values)
    return f"{100 * known[0]:.0f} to {100 * known[-1]:.0f} %"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
