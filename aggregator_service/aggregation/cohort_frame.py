"""Norms of everything that can be made of a cohort's products, from one pair of Gram matrices.

Every figure of a certificate is the norm of a sum of products of few factors,

    X = sum_ij L_i w_ij R_j,      |X|^2 = tr(W^T G_L W G_R),   G_L = L^T L,  G_R = R R^T

in the coordinates of `cohort_coordinates`. So the long dimensions are gone through once, for G_L
and G_R, whatever is asked, and for the clients' part not even once where it was made while updates
arrived (`gram_blocks`). W is sparse, so each norm then costs two sparse products.

A norm from squares knows its terms to eps. `norm` compares with the size of the largest
terms and says so (None) where half of the digits are gone; `centred` has the same norms at any
size, for more.

Shape suffixes: N columns of all blocks, U clients, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.client_grams import ClientGrams, without_drift
from aggregator_service.aggregation.cohort_coordinates import coordinates
from fedlora.adapters.factors import LoraFactors

__all__ = ["CohortFrame"]

_CANCELLATION = 1e-4
"""norm over the size of its terms below which it is not answered; above, it is good to 1e-8"""

_PANEL = 1024
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
        self._ranks = tuple(f.rank for f in members)
        self._rank = rank = max(self._ranks)
        self.of = coordinates(
            tuple(weights_U.tolist()),
            self._ranks,
            tuple(f.rank for f in more),
            origin.a_RK.device,
        )
        """W of what may be asked for"""
        padded = [f.padded(rank) for f in members]
        near = LoraFactors(origin.a_RK[:rank], origin.b_DR[:, :rank])
        if grams is None or grams.rank != rank:
            grams = ClientGrams.near(members, near)
        left = [near.b_DR, *(f.b_DR for f in padded)], [f.b_DR for f in more]
        right = [near.a_RK.T, *(f.a_RK.T for f in padded)], [f.a_RK.T for f in more]
        self._left_NN, self._right_NN = (
            _bordered(known, *side)
            for known, side in zip((grams.left, grams.right), (left, right), strict=True)
        )
        self._left_N = self._left_NN.diagonal().clamp(min=0).sqrt()
        self._right_N = self._right_NN.diagonal().clamp(min=0).sqrt()

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


def _bordered(known: Tensor, near: Sequence[Tensor], more: Sequence[Tensor]) -> Tensor:
    """Of [F_o, F_1 - F_o, .., F_U - F_o, ..more], from what is known of all but the last.

    Differences are taken of products with `more`: these adapters are as large as the origin, so no
    digit is lost that the products have.

    Args:
        known: the Gram matrix without `more`.
        near: F_o, F_1, .., F_U, D x R each.
        more: D x r each.
    """
    first, size = near[0], len(near[0])
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
