"""What was measured, and how it is looked up.

"Whole adapter" is the root of sums of squares over layers, numerator and denominator apart; "mean
over layers" is the mean of the layers' ratios, as papers draw it.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from certificates.rounds import Cell, Round

from fedlora.runs.report import Certificate

__all__ = ["AVERAGING", "CAPPED", "DIAGONALS", "FAIR", "LEAST", "MATRICES", "SCALARS"]
__all__ += ["Grid", "Measured", "Over", "Pick", "closed", "error"]

AVERAGING, FAIR = "averaging", "LoRA-FAIR"
SCALARS, CAPPED, DIAGONALS, MATRICES = "scalars", "scalars, capped", "diagonals", "matrices"
LEAST = "least"
"""column of the Eckart-Young bound; not a method"""


class Over(enum.StrEnum):
    """Denominators."""

    LAYERS = "mean over layers, over |T|"
    MODEL = "whole adapter, over |T|"
    CHANGE = "whole adapter, over what the round changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round of one federation."""

    cell: Cell
    seed: int
    round: Round
    certificates: Mapping[str, Certificate]
    """by the method's name on the page; the federation's own is the first"""

    def of(self, column: str) -> Certificate:
        """Of a method; the bound stands in all of them."""
        return self.certificates.get(column) or next(iter(self.certificates.values()))

    def layers(self, method: str, measurement: str) -> list[float]:
        """One measurement of a method, layer by layer."""
        return [e.measurements[measurement] for e in self.of(method).modules]

    @property
    def lost(self) -> float:
        """Norm of what the federation's own method lost."""
        own = next(iter(self.certificates.values())).overall
        return own.relative_error * own.ideal_norm

    @property
    def least(self) -> float:
        """Norm of what any adapter of that rank would have lost."""
        own = next(iter(self.certificates.values())).overall
        return own.lower_bound * own.ideal_norm

    @property
    def changed(self) -> float:
        """Norm of what the round would have changed, had nothing been lost."""
        return next(iter(self.certificates.values())).overall.change_norm

    @property
    def averaging_concentration(self) -> float:
        """Largest share in the product's coefficients where p = q = w."""
        squares = [w**2 for w in self.round.weights]
        return max(squares) / sum(squares)


Pick = Callable[[Measured], float]


def error(column: str, over: Over) -> Pick:
    """The error of a method, or the bound."""
    name = "lower_bound" if column == LEAST else "relative_error"
    if over is Over.LAYERS:
        return lambda m: statistics.fmean(getattr(e, name) for e in m.of(column).modules)
    name += "_vs_change" if over is Over.CHANGE else ""
    return lambda m: float(getattr(m.of(column).overall, name))


def closed(method: str) -> Pick:
    """Share of the avoidable squared error that the method avoids."""
    return lambda m: m.of(method).overall.gap_closed


@dataclass(frozen=True, slots=True)
class Grid:
    """All measurements of all methods."""

    rows: Sequence[Measured]

    @property
    def cells(self) -> list[Cell]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(m.cell for m in self.rows))

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted({m.seed for m in self.rows})

    @property
    def rounds(self) -> list[int]:
        """In order."""
        return sorted({m.round.number for m in self.rows})

    @property
    def methods(self) -> list[str]:
        """In the order of the table."""
        return list(self.rows[0].certificates)

    def of(self, cell: Cell, number: int | None = None) -> list[Measured]:
        """A cell's rounds of that number, one for each seed; all of them for None."""
        return [m for m in self.rows if m.cell == cell and number in (None, m.round.number)]

    def mean(self, cell: Cell, number: int, pick: Pick) -> float:
        """Over the seeds."""
        return statistics.fmean(pick(m) for m in self.of(cell, number))

    def of_layers(self, cell: Cell, number: int, column: str) -> dict[str, float]:
        """Errors over |T| by module, means over the seeds."""
        name = "lower_bound" if column == LEAST else "relative_error"
        found: dict[str, list[float]] = {}
        for m in self.of(cell, number):
            for e in m.of(column).modules:
                found.setdefault(e.module, []).append(getattr(e, name))
        return {module: statistics.fmean(values) for module, values in found.items()}
