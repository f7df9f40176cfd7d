"""A product of stacked factors, T = sum_u w_u B_u A_u, by its blocks as they lie in memory.

Nothing is stacked and nothing is cast as a whole: a large cohort's stacks in float64 would be
several times the updates themselves, and writing fresh memory costs more than the arithmetic.

Thin products (`times`, `transposed_times`) run in `working_dtype`, the blocks' own element type
where that is float32 or float64, over groups of `_WIDTH` components joined in a reused buffer: a
product with one client's few columns at a time is slower than copying them, for copies run at the
speed of reading. Gram matrices are summed in float64 over panels of rows (`gram`), and
combinations over blocks.

Shape suffixes: R sum of ranks, L columns of a probe, Q columns of a combination, K in_features,
D out_features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.numerics.gram import gram_of_panels

__all__ = ["BlockProduct"]

_WIDTH = 128
"""components that are joined for one thin product: wide enough for a matrix product to run at its
speed, 2 MB for a side of 4096 in float32"""


@dataclass(frozen=True, slots=True, eq=False)
class BlockProduct:
    """sum_u w_u B_u A_u, never formed."""

    b_blocks: Sequence[Tensor]
    """D x r_u each"""
    a_blocks: Sequence[Tensor]
    """r_u x K each"""
    weights: Sequence[float]
    """w_u"""
    grams: tuple[Tensor, Tensor] | None = None
    """what `gram_b` and `gram_a` are, where somebody has made them already"""

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
        """T X, D x L, in the element type of X; a few blocks at a time, side by side."""
        d, k = self.shape
        total = x_KL.new_zeros(d, x_KL.shape[1])
        weights_R = self.component_weights.to(x_KL.dtype)
        joined = _Joined(x_KL)
        for some, here in self._groups():
            inner = joined.rows(self.a_blocks[some], k) @ x_KL
            inner *= weights_R[here, None]
            total.addmm_(joined.columns(self.b_blocks[some], d), inner)
        return total

    def transposed_times(self, y_DL: Tensor) -> Tensor:
        """T^T Y, K x L, in the element type of Y."""
        d, k = self.shape
        # Summed as Y^T T: rows of A are read as they lie, and gain nothing from being joined.
        total = y_DL.new_zeros(y_DL.shape[1], k)
        weights_R = self.component_weights.to(y_DL.dtype)
        joined = _Joined(y_DL)
        for some, here in self._groups():
            inner = y_DL.T @ joined.columns(self.b_blocks[some], d)
            inner *= weights_R[here]
            blocks = self.a_blocks[some]
            parts = torch.split(inner, [a.shape[0] for a in blocks], dim=1)
            for a, part in zip(blocks, parts, strict=True):
                total.addmm_(part, a.to(y_DL.dtype))
        return total.T

    def gram_b(self) -> Tensor:
        """B^T B of the stack without weights, R x R, float64, exactly symmetric."""
        if self.grams is not None:
            return self.grams[0].to(self.device)
        return gram_of_panels(self._rows_of_b, self.shape[0], self.rank, self.device)

    def gram_a(self) -> Tensor:
        """A A^T of the stack, R x R, float64, exactly symmetric."""
        if self.grams is not None:
            return self.grams[1].to(self.device)
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

    def _groups(self) -> Iterator[tuple[slice, slice]]:
        """Neighbouring blocks of about `_WIDTH` components, and those components."""
        first = begin = end = 0
        for index, a in enumerate(self.a_blocks):
            if index > first and end + a.shape[0] - begin > _WIDTH:
                yield slice(first, index), slice(begin, end)
                first, begin = index, end
            end += a.shape[0]
        yield slice(first, len(self.a_blocks)), slice(begin, end)

    def _rows_of_b(self, begin: int, end: int) -> Tensor:
        rows = [b[begin:end] for b in self.b_blocks]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _rows_of_a(self, begin: int, end: int) -> Tensor:
        rows = [a[:, begin:end] for a in self.a_blocks]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).T


class _Joined:
    """Memory that one group of blocks after the other is joined in, each over the one before.

    Args:
        like: of the element type and on the device that the joined blocks shall have.
    """

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def rows(self, blocks: Sequence[Tensor], size: int) -> Tensor:
        """Blocks r_u x size on top of each other."""
        count = sum(block.shape[0] for block in blocks)
        return torch.cat(tuple(blocks), out=self._part(count * size).view(count, size))

    def columns(self, blocks: Sequence[Tensor], size: int) -> Tensor:
        """Blocks size x r_u side by side."""
        count = sum(block.shape[1] for block in blocks)
        return torch.cat(tuple(blocks), dim=1, out=self._part(size * count).view(size, count))

    def _part(self, count: int) -> Tensor:
        if self._memory.numel() < count:
            self._memory = self._memory.new_empty(count)
        return self._memory[:count]
