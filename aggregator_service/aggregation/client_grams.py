"""Gram matrices of a cohort, from blocks that each belong to two clients.

With (A_o, B_o) what the round began from and the drifts X_u = B_u - B_o, Y_u = A_u - A_o, every
Gram matrix that combining needs is made of the blocks

    B_o^T B_o,  B_o^T X_u,  X_u^T X_v          and the same of A, transposed

by sums of blocks alone. A block knows of its two clients only, so it can be computed as soon as
both updates are there (`gram_blocks`), and has the same bits in every cohort. Drifts and not the
factors themselves: B_u - B_o is exact for nearby floats, and deviations from the mean are
differences of drifts, in which little cancels.

Without such blocks `ClientGrams.near` makes the whole at the close.

Clients of lower rank are padded with zero components, whose drifts are minus the start's.

Shape suffixes: U clients, N = U + 1 blocks, R rank of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import gram_of_panels

__all__ = ["ClientGrams", "without_drift"]


@dataclass(frozen=True, slots=True, eq=False)
class ClientGrams:
    """Of [B_o, X_1 .. X_U] and of [A_o; Y_1; ..; Y_U]: N R x N R each, in float64."""

    left: Tensor
    right: Tensor
    ranks: tuple[int, ...]
    """the clients' own"""

    @classmethod
    def near(cls, members: Sequence[LoraFactors], origin: LoraFactors) -> ClientGrams:
        """Those of a cohort, made at once.

        Args:
            members: in any ranks.
            origin: an adapter near all of them, of at least their rank; its rank is R.
        """
        rank = origin.rank
        padded = [f.padded(rank) for f in members]
        left = _of_drifts(origin.b_DR, [f.b_DR for f in padded])
        right = _of_drifts(origin.a_RK.T, [f.a_RK.T for f in padded])
        return cls(left, right, tuple(f.rank for f in members))

    @property
    def rank(self) -> int:
        """R."""
        return len(self.left) // (1 + len(self.ranks))

    def stack(self) -> tuple[Tensor, Tensor]:
        """Of [B_1 .. B_U] and [A_1; ..; A_U], the clients' own components."""
        left, right = (without_drift(gram, self.ranks, self.rank) for gram in self._both)
        return left, right

    def centred(self, weights_U: Tensor) -> tuple[Tensor, Tensor]:
        """Of [B~, B_1 - B~, .., B_U - B~] with the mean B~ = sum_u w_u B_u, and likewise of A."""
        count = len(self.ranks)
        mix_NN = torch.zeros(1 + count, 1 + count, dtype=torch.float64)
        mix_NN[0, 0] = 1
        mix_NN[1:, 0] = weights_U
        mix_NN[1:, 1:] = torch.eye(count, dtype=torch.float64) - weights_U[:, None]
        left, right = (_mixed(gram, mix_NN, self.rank) for gram in self._both)
        return left, right

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right


def without_drift(gram: Tensor, ranks: Sequence[int], rank: int) -> Tensor:
    """From [F_o, X_1 .. X_U] to the F_u = F_o + X_u, of each the first components.

    Args:
        gram: of the former, perhaps with further blocks behind.
        ranks: how many components of each client are kept.
        rank: R.
    """
    count = len(ranks)
    blocks = gram[: rank * (1 + count), : rank * (1 + count)]
    origin = blocks[:rank, :rank].repeat(count, count)
    across = blocks[:rank, rank:].repeat(count, 1)
    whole = origin + across + across.T + blocks[rank:, rank:]
    if all(own == rank for own in ranks):
        return whole
    kept = torch.cat([torch.arange(own) + u * rank for u, own in enumerate(ranks)])
    kept = kept.to(whole.device)
    return whole[kept][:, kept]


def _of_drifts(origin: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Of [F_o, F_1 - F_o, .., F_U - F_o], differences taken a few rows at a time."""

    def rows(begin: int, end: int) -> Tensor:
        here = origin[begin:end].to(torch.float64)
        return torch.cat([here, *(member[begin:end] - here for member in members)], dim=1)

    size, rank = origin.shape
    return gram_of_panels(rows, size, rank * (1 + len(members)), origin.device)


def _mixed(gram: Tensor, mix_NN: Tensor, rank: int) -> Tensor:
    """Of the blocks sum_i F_i mix[i, j]."""
    n, mix_NN = len(mix_NN), mix_NN.to(gram.device)
    blocks_NRNR = gram.reshape(n, rank, n, rank)
    half = torch.einsum("irjs,ia->arjs", blocks_NRNR, mix_NN)
    whole = torch.einsum("arjs,jb->arbs", half, mix_NN).reshape(n * rank, n * rank)
    return (whole + whole.T) / 2
