"""Along which vectors the factors of an adapter are split into magnitudes and directions.

    axis    A                      B                      magnitudes
    rank    rows, R of them        columns, R of them     one of each per component
    row     rows, R of them        rows, D of them        B's belong to outputs
    dora    columns, K of them     columns, R of them     DoRA's split, of A and of B

A vector x is m v with m = |x| and |v| = 1. One shorter than MIN_NORM has no direction. B is so at
its start.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import enum

from fedlora.errors import FedLoraError, Reason

__all__ = ["MIN_NORM", "Axis"]

MIN_NORM = 1e-8
"""length from which a vector has a direction"""


class Axis(enum.StrEnum):
    """Which vectors of a factor are split; a worker is told its number, in this order."""

    RANK = "rank"
    ROW = "row"
    DORA = "dora"

    @property
    def code(self) -> int:
        """0, 1, 2: as a setting of a round plan, which holds numbers only."""
        return list(Axis).index(self)

    @classmethod
    def of(cls, code: float) -> Axis:
        """The axis of a number; INVALID_ARGUMENT for one that has none."""
        for axis in cls:
            if axis.code == code:
                return axis
        known = ", ".join(f"{axis.code} ({axis.value})" for axis in cls)
        raise FedLoraError(Reason.INVALID_ARGUMENT, f"axis: expected {known}, got {code}")

    def summed(self, factor: str) -> int:
        """The dimension along which the vectors of a factor, "a" or "b", lie."""
        if self is Axis.DORA:
            return 0
        return 0 if self is Axis.RANK and factor == "b" else 1
