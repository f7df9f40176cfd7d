"""The weighted sum of a cohort's products as one adapter, stacked only where somebody looks.

Most of what is done with such a sum (its decomposition, its norm, its rank) needs the blocks one
after the other, and never the stack, which in float64 is twice as large as all updates together.

Shape suffixes: R sum of the ranks, K in_features, D out_features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import BlockProduct

__all__ = ["StackedFactors", "block_product"]


class StackedFactors(LoraFactors):
    """sum_u w_u B_u A_u as factors of rank R in float64; each look at a factor stacks it anew.

    Args:
        members: of one shape, dtype and device.
        weights: w_u.
        grams: Gram matrices of [B_1 .. B_U] and of [A_1; ..; A_U], where they are known.
    """

    __slots__ = ("blocks",)

    blocks: BlockProduct

    def __init__(
        self,
        members: Sequence[LoraFactors],
        weights: Sequence[float],
        *,
        grams: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        # The base is frozen and holds two tensors; this holds what they would be made of.
        blocks = BlockProduct(
            [f.b_DR for f in members], [f.a_RK for f in members], weights, grams=grams
        )
        object.__setattr__(self, "blocks", blocks)

    @property
    def a_RK(self) -> Tensor:  # noqa: N802
        """The members' A on top of each other."""
        return torch.cat([a.to(torch.float64) for a in self.blocks.a_blocks])

    @property
    def b_DR(self) -> Tensor:  # noqa: N802
        """The members' B side by side, each times its weight."""
        pairs = zip(self.blocks.b_blocks, self.blocks.weights, strict=True)
        return torch.cat([b.to(torch.float64) * w for b, w in pairs], dim=1)

    @property
    def rank(self) -> int:
        """R."""
        return self.blocks.rank

    @property
    def in_features(self) -> int:
        """K."""
        return self.blocks.shape[1]

    @property
    def out_features(self) -> int:
        """D."""
        return self.blocks.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """float64."""
        return torch.float64


def block_product(factors: LoraFactors) -> BlockProduct:
    """B A by the blocks it is made of: one, unless it is a stack."""
    if isinstance(factors, StackedFactors):
        return factors.blocks
    return BlockProduct([factors.b_DR], [factors.a_RK], [1.0])
