"""A product of stacked factors, T = sum_u w_u B_u A_u, by its blocks as they lie in memory.

Nothing is stacked and nothing is cast as a whole: a large cohort's stacks in float64 would be
several times the updates themselves, and writing fresh memory costs more than the arithmetic.

Thin products (`times`, `transposed_times`) run in `working_dtype`, the blocks' own element type
where that is float32 or float64. Gram matrices are summed in float64 over panels of rows (`gram`),
and combinations over blocks.

Shape suffixes: R sum of ranks, L columns of a probe, Q columns of a combination, K in_features,
D out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.numerics.gram import gram_of_panels

__all__ = ["BlockProduct"]


@dataclass(frozen=True, slots=True, eq=False)
class BlockProduct:
    """sum_u w_u B_u A_u, never formed."""

    b_blocks: Sequence[Tensor]
    """D x r_u each"""
    a_blocks: Sequence[Tensor]
    """r_u x K each"""
    weights: Sequence[float]
    """w_u"""

    @property
    def shape(self) -> tuple[int, int]:
        """D and K."""
        return self.b_blocks[0].shape[0], self.a_blocks[0].shape[1]

    @property
    def rank(self) -> int:
        """R."""
        return sum(a.shape[0] for a in self.a_blocks)

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.a_blocks[0].device

    @property
    def working_dtype(self) -> torch.dtype:
        """float64 for float64 blocks, else float32."""
        wide = self.a_blocks[0].dtype is torch.float64
        return torch.float64 if wide else torch.float32

    @property
    def component_weights(self) -> Tensor:
        """w_u once per component: R, float64."""
        ranks = torch.tensor([a.shape[0] for a in self.a_blocks])
        each = torch.tensor(list(self.weights), dtype=torch.float64)
        return each.repeat_interleave(ranks).to(self.device)

    def times(self, x_KL: Tensor) -> Tensor:
        """T X, D x L, in the element type of X."""
        total = x_KL.new_zeros(self.shape[0], x_KL.shape[1])
        for b, a, weight in zip(self.b_blocks, self.a_blocks, self.weights, strict=True):
            total.addmm_(b.to(x_KL.dtype), a.to(x_KL.dtype) @ x_KL, alpha=weight)
        return total

    def transposed_times(self, y_DL: Tensor) -> Tensor:
        """T^T Y, K x L, in the element type of Y."""
        total = y_DL.new_zeros(self.shape[1], y_DL.shape[1])
        for b, a, weight in zip(self.b_blocks, self.a_blocks, self.weights, strict=True):
            total.addmm_(a.to(y_DL.dtype).T, b.to(y_DL.dtype).T @ y_DL, alpha=weight)
        return total

    def gram_b(self) -> Tensor:
        """B^T B of the stack without weights, R x R, float64, exactly symmetric."""
        return gram_of_panels(self._rows_of_b, self.shape[0], self.rank, self.device)

    def gram_a(self) -> Tensor:
        """A A^T of the stack, R x R, float64, exactly symmetric."""
        return gram_of_panels(self._rows_of_a, self.shape[1], self.rank, self.device)

    def combine_b(self, p_RQ: Tensor) -> Tensor:
        """B P of the stack without weights, D x Q, float64."""
        total = p_RQ.new_zeros(self.shape[0], p_RQ.shape[1])
        parts = torch.split(p_RQ, [b.shape[1] for b in self.b_blocks])
        for b, p in zip(self.b_blocks, parts, strict=True):
            total.addmm_(b.to(torch.float64), p)
        return total

    def combine_a(self, p_QR: Tensor) -> Tensor:
        """P A of the stack, Q x K, float64."""
        total = p_QR.new_zeros(p_QR.shape[0], self.shape[1])
        parts = torch.split(p_QR, [a.shape[0] for a in self.a_blocks], dim=1)
        for a, p in zip(self.a_blocks, parts, strict=True):
            total.addmm_(p, a.to(torch.float64))
        return total

    def stacked(self) -> tuple[Tensor, Tensor]:
        """B with its weights, D x R, and A, R x K, in float64."""
        weighted = [
            b.to(torch.float64) * w for b, w in zip(self.b_blocks, self.weights, strict=True)
        ]
        return torch.cat(weighted, dim=1), torch.cat([a.to(torch.float64) for a in self.a_blocks])

    def _rows_of_b(self, begin: int, end: int) -> Tensor:
        rows = [b[begin:end] for b in self.b_blocks]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _rows_of_a(self, begin: int, end: int) -> Tensor:
        rows = [a[:, begin:end] for a in self.a_blocks]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).T
