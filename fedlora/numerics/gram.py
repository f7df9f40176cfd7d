"""Gram matrices of stacked factors, one product per pair of blocks.

The Gram matrix of X = [X_1 .. X_U] is all that norms, angles and least-squares problems on
products of stacked factors need; it costs R^2 d flops and R^2 floats for R = sum of widths.

Each block X_u^T X_w (u <= w) is a product of its own: one wide product may be tiled by the
BLAS according to its total width, so that the same pair of clients would get other last bits
in another cohort. The lower triangle is copied, not computed.

Shape suffixes: D rows (in_features or out_features), R sum of the widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["gram_matrix"]


def gram_matrix(blocks: Sequence[Tensor]) -> Tensor:
    """X^T X for X = [X_1 .. X_U], in float64.

    Args:
        blocks: D x r_u each, at least one; pass transposes for a Gram matrix of rows.

    Returns:
        R x R, exactly symmetric.
    """
    wide = [block.to(torch.float64) for block in blocks]
    edges = [0, *accumulate(block.shape[1] for block in wide)]
    gram_RR = wide[0].new_empty(edges[-1], edges[-1])
    for u, left in enumerate(wide):
        here = slice(edges[u], edges[u + 1])
        for w in range(u, len(wide)):
            there = slice(edges[w], edges[w + 1])
            product = left.T @ wide[w]
            if w == u:
                product = (product + product.T) / 2
            gram_RR[here, there] = product
            gram_RR[there, here] = product.T
    return gram_RR
