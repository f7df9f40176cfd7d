"""Sums of a cohort's products as small matrices W, in coordinates near its members.

With L = [B_o, B_1 - B_o, .., B_U - B_o, ..] and R = [A_o; A_1 - A_o; ..; A_U - A_o; ..], every sum
of products that a certificate asks for is L W R:

    T        W = 1 at (o, o), w_u at (o, u), (u, o) and (u, u)
    B~ A~    W = 1 at (o, o), w_u at (o, u) and (u, o), w_u w_v at (u, v)
    their difference has no entry at the large block (o, o)

W has only diagonals of blocks, so it is sparse; and it is the same for all modules of one rank, so
it is made once.

Shape suffixes: N columns of all blocks, U clients, R rank.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Coordinates", "coordinates"]


class Coordinates:
    """W of what is asked for, each N x N, sparse and coalesced, in float64.

    Args:
        weights: w_u, summing to 1.
        ranks: of the clients; their blocks have the largest.
        more: columns of further factors, whose products are to be compared with the cohort's.
        device: where they go.
    """

    def __init__(
        self,
        weights: Sequence[float],
        ranks: Sequence[int],
        more: Sequence[int],
        device: torch.device,
    ) -> None:
        self._weights, self._ranks, self._more, self._device = weights, ranks, more, device
        self._sizes = [max(ranks)] * (1 + len(ranks)) + [*more]
        self._edges = [0, *itertools.accumulate(self._sizes)]

    @functools.cached_property
    def ideal(self) -> Tensor:
        """T."""
        return self._near_origin + self._diagonals([0], [0], torch.ones(1))

    @functools.cached_property
    def error(self) -> Tensor:
        """Products of all the further factors, minus T."""
        total = -self.ideal
        for index in range(len(self._more)):
            block = 1 + len(self._ranks) + index
            total = total + self._diagonals([block], [block], torch.ones(1))
        return total

    @functools.cached_property
    def lost_by_the_mean(self) -> Tensor:
        """T - B~ A~."""
        clients = range(1, 1 + len(self._ranks))
        i, j = zip(*itertools.product(clients, clients), strict=True)
        w_U = torch.tensor(self._weights, dtype=torch.float64)
        return self._diagonals(i, j, (torch.diag(w_U) - torch.outer(w_U, w_U)).flatten())

    @functools.cached_property
    def change(self) -> Tensor:
        """T minus what the clients were given: the first components of the origin, by rank."""
        if len(set(self._ranks)) == 1:
            # No entry at all at the origin, and not a rounded one.
            return self._near_origin
        left_R = torch.ones(max(self._ranks), dtype=torch.float64)
        for rank, w in zip(self._ranks, self._weights, strict=True):
            left_R[:rank] -= w
        return self._near_origin + self._diagonals([0], [0], left_R[None])

    @functools.cached_property
    def _near_origin(self) -> Tensor:
        """sum_u w_u times (B_u - B_o) A_o + B_o (A_u - A_o) + (B_u - B_o) (A_u - A_o)."""
        count = len(self._ranks)
        clients, zeros = [*range(1, 1 + count)], [0] * count
        return self._diagonals(
            [*zeros, *clients, *clients],
            [*clients, *zeros, *clients],
            torch.tensor([*self._weights] * 3, dtype=torch.float64),
        )

    def _diagonals(self, i: Sequence[int], j: Sequence[int], values: Tensor) -> Tensor:
        """Numbers on the diagonals of blocks.

        Args:
            i: rows of blocks, all of one width.
            j: columns, likewise.
            values: one number per block, or one per block and component.
        """
        size, whole = self._sizes[i[0]], (self._edges[-1], self._edges[-1])
        edges = torch.tensor(self._edges)
        places = edges[torch.tensor([[*i], [*j]])][:, :, None] + torch.arange(size)
        spread = values.to(torch.float64).reshape(len(i), -1).expand(len(i), size)
        entries = torch.sparse_coo_tensor(
            places.flatten(1), spread.flatten(), whole, check_invariants=True
        )
        return entries.to(self._device).coalesce()


@functools.lru_cache(maxsize=16)
def coordinates(
    weights: tuple[float, ...], ranks: tuple[int, ...], more: tuple[int, ...], device: torch.device
) -> Coordinates:
    """Those of a cohort; the same object for the same cohort."""
    return Coordinates(weights, ranks, more, device)
