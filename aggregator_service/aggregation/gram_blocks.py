"""Gram blocks of a round, computed while its updates arrive.

A server that waits for the last update has nothing to do. Whatever two updates come to, their
products with each other, can be computed as soon as both are there; at the close only sums of
blocks are left (`client_grams`). It pays while blocks are fewer than what they are made of: for
cohorts whose ranks add up to a quarter of a layer's smaller side at most, and to `_MOST`.

Blocks are computed from the committed files, one sum for each pair in the order of the names, a few
rows of every update in float64 at a time. So they are the same bits whenever and in whatever order
they are computed, and a server that was restarted computes the missing ones at the close and comes
to the same adapter.

Memory: 16 (U R)^2 bytes per module, U clients of rank R; 26 MB for 64 modules at U = 10, R = 16.

Shape suffixes: R rank, P rows of a panel.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.parallel import in_order
from aggregator_service.aggregation.round_context import StoredAdapter

__all__ = ["RoundGrams", "pays"]

_ORIGIN = ""
"""stands for what the round began from; no worker has an empty name"""

_SHARE = 4
"""the ranks add up to min(out, in) / 4 at most"""

_MOST = 512
"""the ranks add up to no more: 4 MB of blocks per module"""

_PANEL = 1024
"""rows in float64 at a time"""

_Block = tuple[Tensor, Tensor]


def pays(ranks: int, out_features: int, in_features: int) -> bool:
    """Whether blocks are worth it for a layer and the sum of a cohort's ranks."""
    return _SHARE * ranks <= min(out_features, in_features) and ranks <= _MOST


class RoundGrams:
    """The blocks of one round, by module and pair. Not for several threads at once.

    Args:
        start: what the round began from.
        threads: modules at a time; 0 for as many as torch would use.
    """

    def __init__(self, start: StoredAdapter, *, threads: int = 0) -> None:
        self.start = start
        """what the round began from"""
        self._threads = threads
        self._blocks: dict[str, dict[tuple[str, str], _Block]] = {}

    def add(self, contributions: Sequence[Contribution]) -> None:
        """Computes what is missing between these updates, where it pays.

        Raises:
            FedLoraError: as `CohortFiles`.
        """
        with (
            AdapterFile(self.start.path, self.start.scaling, "the version before") as start,
            CohortFiles(contributions, start=start) as cohort,
        ):
            modules = [m for m in cohort.modules if self._pays(cohort, m, start.rank(m))]
            work = functools.partial(self._module, cohort)
            for _ in in_order(work, modules, device="cpu", threads=self._threads):
                pass

    def of(self, module: str, cohort: CohortFiles) -> ClientGrams | None:
        """The Gram matrices of a cohort; None where they were not worth it."""
        held = self._blocks.get(module)
        names = (_ORIGIN, *(c.worker for c in cohort.contributions))
        if held is None or any((v, w) not in held for v in names for w in names if v <= w):
            return None
        left, right = (_assembled(held, names, side) for side in (0, 1))
        return ClientGrams(left, right, tuple(file.rank(module) for file in cohort.files))

    @staticmethod
    def _pays(cohort: CohortFiles, module: str, rank: int) -> bool:
        ranks = [file.rank(module) for file in cohort.files]
        # A layer may have been published at a lower rank than workers train: no block has that.
        return max(ranks) <= rank and pays(sum(ranks), *cohort.features(module))

    def _module(self, cohort: CohortFiles, module: str) -> None:
        """Called from several threads, for different modules."""
        held = self._blocks.setdefault(module, {})
        names = (_ORIGIN, *(c.worker for c in cohort.contributions))
        missing = [(v, w) for v in names for w in names if v <= w and (v, w) not in held]
        if not missing:
            return
        start = cohort.start(module)
        assert start is not None  # noqa: S101
        members = dict(zip(names[1:], cohort.factors(module), strict=True))
        left = _products(start.factors.b_DR, {name: f.b_DR for name, f in members.items()}, missing)
        right = _products(
            start.factors.a_RK.T, {name: f.a_RK.T for name, f in members.items()}, missing
        )
        held.update({pair: (left[pair], right[pair]) for pair in missing})


def _products(
    start: Tensor, members: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Tensor]:
    """X_v^T X_w by pair (v, w), R x R, where X_u is what member u is apart from the start.

    Args:
        start: of R columns; X of ORIGIN.
        members: by worker, of at most R columns.
        pairs: which products.
    """
    rank = start.shape[1]
    sums = {pair: start.new_zeros(rank, rank, dtype=torch.float64) for pair in pairs}
    for begin in range(0, len(start), _PANEL):
        here = slice(begin, begin + _PANEL)
        origin_PR = start[here].to(torch.float64)
        drift = {_ORIGIN: origin_PR}
        for name, member in members.items():
            drift[name] = -origin_PR
            drift[name][:, : member.shape[1]] += member[here]
        for (v, w), total in sums.items():
            total.addmm_(drift[v].T, drift[w])
    return sums


def _assembled(held: dict[tuple[str, str], _Block], names: Sequence[str], side: int) -> Tensor:
    rows = [
        torch.cat([held[v, w][side] if v <= w else held[w, v][side].T for w in names], dim=1)
        for v in names
    ]
    gram = torch.cat(rows)
    return (gram + gram.T) / 2
