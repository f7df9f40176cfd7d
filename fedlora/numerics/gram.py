"""Gram matrices of stacked factors.

The Gram matrix of X = [X_1 .. X_U] is all that norms, angles and least-squares problems on
products of stacked factors need; it costs R^2 d flops and R^2 floats for R = sum of widths. No BLAS
that torch calls has a symmetric product, so tiles leave out most of the half that symmetry gives.

Shape suffixes: D rows (in_features or out_features), R sum of the widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["gram_matrix", "gram_of_panels"]

_PANEL = 1024
"""rows that are in float64 at a time: the copy of a wide stack must not be as large as the stack"""

_TILE = 64
"""narrowest tile: a narrower one saves less work than its call costs"""


def gram_matrix(blocks: Sequence[Tensor]) -> Tensor:
    """X^T X for X = [X_1 .. X_U], in float64.

    Args:
        blocks: D x r_u each, at least one; pass transposes for a Gram matrix of rows.

    Returns:
        R x R, exactly symmetric.
    """
    first, rank = blocks[0], sum(block.shape[1] for block in blocks)

    def rows(begin: int, end: int) -> Tensor:
        return torch.cat([block[begin:end] for block in blocks], dim=1)

    return gram_of_panels(rows, first.shape[0], rank, first.device)


def gram_of_panels(
    rows: Callable[[int, int], Tensor], size: int, rank: int, device: torch.device
) -> Tensor:
    """The same of a matrix that is given a few rows at a time.

    Args:
        rows: rows [begin, end), in any element type.
        size: D.
        rank: R.
        device: where the rows are.
    """
    gram_RR = torch.zeros(rank, rank, dtype=torch.float64, device=device)
    tile = max(_TILE, -(-rank // 4))
    for begin in range(0, size, _PANEL):
        panel = rows(begin, min(begin + _PANEL, size)).to(torch.float64)
        for left in range(0, rank, tile):
            here = slice(left, left + tile)
            gram_RR[here, : left + tile].addmm_(panel[:, here].T, panel[:, : left + tile])
    lower = gram_RR.tril()
    return lower + lower.tril(-1).T
