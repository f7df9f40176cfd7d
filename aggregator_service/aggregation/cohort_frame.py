"""Norms of everything that can be made of a cohort's products, from one pair of Gram matrices.

Every figure of a certificate is the norm of a sum of products of few factors,

    X = sum_ij L_i w_ij R_j,      |X|^2 = tr(W^T G_L W G_R),   G_L = L^T L,  G_R = R R^T

with L = [B_o, B_1 - B_o, .., B_U - B_o, ..], R likewise, and (A_o, B_o) an adapter near all
clients. So the long dimensions are gone through once, for G_L and G_R, whatever is asked, and for
the clients' part not even once where it was made while updates arrived (`gram_blocks`). W has only
diagonals of blocks, so each norm then costs two sparse products. In these coordinates the ideal
aggregate, the factor mean and what lies between them are

    T        W = 1 at (o, o), w_u at (o, u), (u, o) and (u, u)
    B~ A~    W = 1 at (o, o), w_u at (o, u) and (u, o), w_u w_v at (u, v)
    their difference has no entry at the large block (o, o)

A norm from squares knows its terms to eps. `norm` compares with the size of the largest
terms and says so (None) where half of the digits are gone; `centred` has the same norms at any
size, for more.

Shape suffixes: N columns of all blocks, U clients, R rank.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.client_grams import ClientGrams, without_drift
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import gram_of_panels

__all__ = ["CohortFrame"]

_CANCELLATION = 1e-4
"""norm over the size of its terms below which it is not answered; above, it is good to 1e-8"""

_PANEL = 4096
"""rows in float64 at a time"""


class CohortFrame:
    """A cohort in coordinates near its members.

    Args:
        members: the clients, in any ranks.
        weights_U: float64 on the CPU, summing to 1.
        origin: an adapter near all of them, of at least their rank.
        more: further factors whose products are to be compared with the cohort's.
        grams: of the clients near this origin, where they are known.
    """

    def __init__(
        self,
        members: Sequence[LoraFactors],
        weights_U: Tensor,
        origin: LoraFactors,
        more: Sequence[LoraFactors] = (),
        grams: ClientGrams | None = None,
    ) -> None:
        self._weights = weights_U.tolist()
        self._ranks = [f.rank for f in members]
        rank = max(self._ranks)
        padded = [f.padded(rank) for f in members]
        sizes = [rank] * (1 + len(members)) + [f.rank for f in more]
        edges = [0, *itertools.accumulate(sizes)]
        self._rank, self._count = rank, len(members)
        self._edges, self._sizes = edges, sizes
        near_RK, near_DR = origin.a_RK[:rank], origin.b_DR[:, :rank]
        left = [near_DR, *(f.b_DR for f in padded)], [f.b_DR for f in more]
        right = [near_RK.T, *(f.a_RK.T for f in padded)], [f.a_RK.T for f in more]
        fits = grams is not None and grams.rank == rank
        known = (grams.left, grams.right) if grams is not None and fits else (None, None)
        self._left_NN, self._right_NN = (
            _gram(*side, known=gram) for side, gram in zip((left, right), known, strict=True)
        )
        self._left_N = self._left_NN.diagonal().clamp(min=0).sqrt()
        self._right_N = self._right_NN.diagonal().clamp(min=0).sqrt()

    # --- coordinates: W of what is asked for -----------------------------------------------

    def ideal(self) -> Tensor:
        """T."""
        return self._near_origin + self._diagonals([0], [0], torch.ones(1))

    def lost_by_the_mean(self) -> Tensor:
        """T - B~ A~."""
        clients = range(1, 1 + self._count)
        i, j = zip(*itertools.product(clients, clients), strict=True)
        w_U = torch.tensor(self._weights, dtype=torch.float64)
        return self._diagonals(i, j, (torch.diag(w_U) - torch.outer(w_U, w_U)).flatten())

    def change(self) -> Tensor:
        """T minus what the clients were given: the first components of the origin, by rank."""
        if len(set(self._ranks)) == 1:
            # No entry at all at the origin, and not a rounded one.
            return self._near_origin
        left_R = torch.ones(self._rank, dtype=torch.float64)
        for rank, w in zip(self._ranks, self._weights, strict=True):
            left_R[:rank] -= w
        return self._near_origin + self._diagonals([0], [0], left_R[None])

    def product(self, index: int) -> Tensor:
        """Product of one of the further factors."""
        block = 1 + self._count + index
        return self._diagonals([block], [block], torch.ones(1))

    # --- what is asked of them -------------------------------------------------------------

    def norm(self, w_NN: Tensor) -> float | None:
        """|X|, or None where it is too small among its terms to be known."""
        # (G_L W)^T = W^T G_L: a sparse matrix comes first.
        left_NN = torch.sparse.mm(w_NN.T, self._left_NN).T
        square = float((left_NN * torch.sparse.mm(w_NN, self._right_NN)).sum())
        norm = math.sqrt(max(0.0, square))
        (i, j), values = w_NN.indices(), w_NN.values()
        terms = float((self._left_N[i] * values.abs() * self._right_N[j]).sum())
        return norm if norm >= _CANCELLATION * terms else None

    def gram_of_clients(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [B_1 .. B_U] and [A_1; ..; A_U] themselves, R x R each."""
        left, right = (
            without_drift(gram, self._ranks, self._rank) for gram in (self._left_NN, self._right_NN)
        )
        return left, right

    # --- parts -----------------------------------------------------------------------------

    @functools.cached_property
    def _near_origin(self) -> Tensor:
        """sum_u w_u times (B_u - B_o) A_o + B_o (A_u - A_o) + (B_u - B_o) (A_u - A_o)."""
        clients, zeros = [*range(1, 1 + self._count)], [0] * self._count
        return self._diagonals(
            [*zeros, *clients, *clients],
            [*clients, *zeros, *clients],
            torch.tensor(self._weights * 3, dtype=torch.float64),
        )

    def _diagonals(self, i: Sequence[int], j: Sequence[int], values: Tensor) -> Tensor:
        """Sparse and coalesced, with numbers on the diagonals of blocks.

        Args:
            i: rows of blocks, all of one width.
            j: columns, likewise.
            values: one number per block, or one per block and component.
        """
        size = self._sizes[i[0]]
        edges = torch.tensor(self._edges)
        places = edges[torch.tensor([[*i], [*j]])][:, :, None] + torch.arange(size)
        spread = values.to(torch.float64).reshape(len(i), -1).expand(len(i), size)
        whole = (self._edges[-1], self._edges[-1])
        entries = torch.sparse_coo_tensor(
            places.flatten(1), spread.flatten(), whole, check_invariants=True
        )
        return entries.to(self._left_NN.device).coalesce()


def _gram(near: Sequence[Tensor], more: Sequence[Tensor], known: Tensor | None) -> Tensor:
    """Of [F_o, F_1 - F_o, .., F_U - F_o, ..more] from [F_o, F_1, .., F_U].

    Differences are taken a few rows at a time: in float64 they are twice the updates. Of products
    with `more` the difference is taken: these adapters are as large as the origin, so no digit is
    lost that the products have.

    Args:
        near: D x R each.
        more: D x r each.
        known: the part that is of `near` alone, if somebody has it.
    """
    first, size = near[0], len(near[0])
    if known is None:

        def rows(begin: int, end: int) -> Tensor:
            origin, *members = (block[begin:end].to(torch.float64) for block in near)
            beside = (block[begin:end].to(torch.float64) for block in more)
            return torch.cat([origin, *(member - origin for member in members), *beside], dim=1)

        width = sum(block.shape[1] for block in (*near, *more))
        return gram_of_panels(rows, size, width, first.device)
    others_DQ = torch.cat([block.to(torch.float64) for block in more], dim=1)
    border_NQ = others_DQ.new_zeros(len(known), others_DQ.shape[1])
    for begin in range(0, size, _PANEL):
        here = slice(begin, begin + _PANEL)
        panel = _side_by_side([block[here] for block in near]).to(torch.float64)
        border_NQ += (others_DQ[here].T @ panel).T
    rank = first.shape[1]
    border_NQ[rank:] -= border_NQ[:rank].repeat(len(near) - 1, 1)
    corner_QQ = others_DQ.T @ others_DQ
    lower = torch.cat([border_NQ.T, (corner_QQ + corner_QQ.T) / 2], dim=1)
    return torch.cat([torch.cat([known.to(first.device), border_NQ], dim=1), lower])


def _side_by_side(blocks: Sequence[Tensor]) -> Tensor:
    """Columns next to each other, joined along the way they lie in memory."""
    if blocks[0].stride(0) == 1:
        return torch.cat([block.T for block in blocks]).T
    return torch.cat([*blocks], dim=1)
