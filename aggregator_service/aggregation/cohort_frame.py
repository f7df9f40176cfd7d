"""Norms of everything that can be made of a cohort's products, from one pair of Gram matrices.

Every figure of a certificate is the norm of a sum of products of few factors,

    X = sum_ij L_i w_ij R_j,      |X|^2 = tr(W^T G_L W G_R),   G_L = L^T L,  G_R = R R^T

with L = [B_o, B_1 - B_o, .., B_U - B_o, ..], R likewise, and (A_o, B_o) an adapter near all
clients. So the long dimensions are gone through once, for G_L and G_R, whatever is asked; each
norm then costs two products of small matrices. In these coordinates the ideal aggregate, the
factor mean and what lies between them are

    T        W = 1 at (o, o), w_u at (o, u), (u, o) and (u, u)
    B~ A~    W = 1 at (o, o), w_u at (o, u) and (u, o), w_u w_v at (u, v)
    their difference has no entry at the large block (o, o)

A norm from squares knows its terms to eps. `norm` compares with the size of the largest
terms and says so (None) where half of the digits are gone; `centred` has the same norms at any
size, for more.

Shape suffixes: N columns of all blocks, U clients, R rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.client_grams import without_drift
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import gram_of_panels

__all__ = ["CohortFrame"]

_CANCELLATION = 1e-4
"""norm over the size of its terms below which it is not answered; above, it is good to 1e-8"""


class CohortFrame:
    """A cohort in coordinates near its members.

    Args:
        members: the clients, in any ranks.
        weights_U: float64 on the CPU, summing to 1.
        origin: an adapter near all of them, of at least their rank.
        more: further factors whose products are to be compared with the cohort's.
    """

    def __init__(
        self,
        members: Sequence[LoraFactors],
        weights_U: Tensor,
        origin: LoraFactors,
        more: Sequence[LoraFactors] = (),
    ) -> None:
        self._weights = weights_U.tolist()
        self._ranks = [f.rank for f in members]
        rank = max(self._ranks)
        padded = [f.padded(rank) for f in members]
        sizes = [rank] * (1 + len(members)) + [f.rank for f in more]
        edges = [0, *itertools.accumulate(sizes)]
        self._rank, self._count = rank, len(members)
        self._slices = [slice(begin, end) for begin, end in itertools.pairwise(edges)]
        near_RK, near_DR = origin.a_RK[:rank], origin.b_DR[:, :rank]
        left = [near_DR, *(f.b_DR for f in padded)], [f.b_DR for f in more]
        right = [near_RK.T, *(f.a_RK.T for f in padded)], [f.a_RK.T for f in more]
        self._left_NN, self._right_NN = (_gram(*side) for side in (left, right))
        self._left_N = self._left_NN.diagonal().clamp(min=0).sqrt()
        self._right_N = self._right_NN.diagonal().clamp(min=0).sqrt()

    # --- coordinates: W of what is asked for -----------------------------------------------

    def ideal(self) -> Tensor:
        """T."""
        w_NN = self._zeros()
        self._add(w_NN, 0, 0, 1.0)
        for u, w in enumerate(self._weights, start=1):
            for i, j in ((0, u), (u, 0), (u, u)):
                self._add(w_NN, i, j, w)
        return w_NN

    def lost_by_the_mean(self) -> Tensor:
        """T - B~ A~."""
        w_NN = self._zeros()
        clients = slice(self._rank, self._rank * (1 + self._count))
        w_U = torch.tensor(self._weights, dtype=torch.float64)
        core_UU = torch.diag(w_U) - torch.outer(w_U, w_U)
        eye_RR = torch.eye(self._rank, dtype=torch.float64)
        w_NN[clients, clients] = torch.kron(core_UU, eye_RR).to(w_NN.device)
        return w_NN

    def change(self) -> Tensor:
        """T minus what the clients were given: the first components of the origin, by rank."""
        w_NN = self.ideal()
        given_R = torch.zeros(self._rank, dtype=torch.float64)
        for rank, w in zip(self._ranks, self._weights, strict=True):
            given_R[:rank] += w
        # Equal ranks leave no entry at all here, and not a rounded one.
        left_R = torch.zeros_like(given_R) if len(set(self._ranks)) == 1 else 1 - given_R
        w_NN[self._slices[0], self._slices[0]] = torch.diag(left_R).to(w_NN.device)
        return w_NN

    def product(self, index: int, sign: float = 1.0) -> Tensor:
        """Product of one of the further factors."""
        w_NN = self._zeros()
        self._add(w_NN, 1 + self._count + index, 1 + self._count + index, sign)
        return w_NN

    # --- what is asked of them -------------------------------------------------------------

    def norm(self, w_NN: Tensor) -> float | None:
        """|X|, or None where it is too small among its terms to be known."""
        square = float(((self._left_NN @ w_NN) * (w_NN @ self._right_NN)).sum())
        norm = math.sqrt(max(0.0, square))
        terms = float(self._left_N @ w_NN.abs() @ self._right_N)
        return norm if norm >= _CANCELLATION * terms else None

    def gram_of_clients(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [B_1 .. B_U] and [A_1; ..; A_U] themselves, R x R each."""
        left, right = (
            without_drift(gram, self._ranks, self._rank) for gram in (self._left_NN, self._right_NN)
        )
        return left, right

    # --- parts -----------------------------------------------------------------------------

    def _zeros(self) -> Tensor:
        return torch.zeros_like(self._left_NN)

    def _add(self, w_NN: Tensor, i: int, j: int, value: float) -> None:
        w_NN[self._slices[i], self._slices[j]].diagonal().add_(value)


def _gram(near: Sequence[Tensor], more: Sequence[Tensor]) -> Tensor:
    """Of [F_o, F_1 - F_o, .., F_U - F_o, ..more] from [F_o, F_1, .., F_U].

    Differences are taken a few rows at a time: in float64 they are twice the updates.
    """
    first = near[0]

    def rows(begin: int, end: int) -> Tensor:
        origin, *members = (block[begin:end].to(torch.float64) for block in near)
        beside = (block[begin:end].to(torch.float64) for block in more)
        return torch.cat([origin, *(member - origin for member in members), *beside], dim=1)

    width = sum(block.shape[1] for block in (*near, *more))
    return gram_of_panels(rows, first.shape[0], width, first.device)
