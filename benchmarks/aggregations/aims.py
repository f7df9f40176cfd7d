"""What the figures were meant to be, beside what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Aim(NamedTuple):
    """A row of the page's first table."""

    what: str
    aimed_at: str
    measured: str


Section = tuple[list[str], list[Aim]]
"""Lines of the page, and what they say of what was aimed at."""


def spread_of(values: Sequence[float]) -> str:
    """The least and the greatest of several figures, in words."""
    least, most = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
