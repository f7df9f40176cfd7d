"""An experiment's split of one file over several workers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedlora.errors import invalid_argument

__all__ = [
    "PartitionScheme",
    "PartitionSpec",
]


class PartitionScheme(enum.StrEnum):
    """How an experiment splits one file over several workers."""

    IID = "iid"
    DIRICHLET = "dirichlet"
    COLUMN = "column"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """An experiment's split of one file over several workers."""

    scheme: PartitionScheme = PartitionScheme.DIRICHLET
    """iid, dirichlet (by label) or column"""
    num_slots: int
    """parts the file is split into; each worker leases one"""
    dirichlet_alpha: float = 0.3
    """concentration; small is very non-IID"""
    column: str = ""
    """for scheme "column": rows with one value of it stay together"""
    seed: int = 0
    """seed of the split"""

    def __post_init__(self) -> None:
        if self.num_slots < 1:
            raise invalid_argument(f"partition.num_slots must be at least 1, got {self.num_slots}")
        in_range = 0 < self.dirichlet_alpha < float("inf")
        if self.scheme is PartitionScheme.DIRICHLET and not in_range:
            raise invalid_argument(
                "partition.dirichlet_alpha must be positive and finite, got "
                f"{self.dirichlet_alpha}",
                'For equal shares, use the scheme "iid"',
            )
        if self.scheme is PartitionScheme.COLUMN and not self.column:
            raise invalid_argument('partition.column is empty with scheme "column"')
