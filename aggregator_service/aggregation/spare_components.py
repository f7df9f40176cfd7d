"""Components that hold nothing of a product, made so that they can learn.

A component whose column of B and row of A are both zero is a saddle: its gradient is zero for
ever. Spare components so have B = 0 and random rows in A of the norm PEFT starts with: the product
stays as it is, and B can learn.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors

__all__ = ["FRESH_ROW_NORM", "filled", "fresh"]

FRESH_ROW_NORM = 3**-0.5
"""norm of a row of PEFT's initial lora_A: K entries, uniform in +-1/sqrt(K)"""


def filled(factors: LoraFactors, rank: int, generator: torch.Generator) -> LoraFactors:
    """The same product at rank `rank`, with trainable spare components.

    Spare columns of B are 0; spare rows of A are random, of the norm PEFT starts with, and
    orthogonal to A's rows and to each other while K leaves room.

    Args:
        factors: of rank at most `rank`.
        rank: rank of the result.
        generator: on the CPU, so that all devices draw the same rows.
    """
    more = rank - factors.rank
    if more == 0:
        return factors
    rows = _fresh_rows(factors.a_RK, more, generator).to(factors.dtype)
    zeros = factors.b_DR.new_zeros(factors.out_features, more)
    return LoraFactors(torch.cat([factors.a_RK, rows]), torch.cat([factors.b_DR, zeros], dim=1))


def fresh(
    out_features: int, in_features: int, rank: int, device: torch.device, generator: torch.Generator
) -> LoraFactors:
    """The zero product of rank `rank`, ready to learn, in float64."""
    none = torch.zeros(0, in_features, dtype=torch.float64, device=device)
    return LoraFactors(_fresh_rows(none, rank, generator), none.new_zeros(out_features, rank))


def _fresh_rows(taken_RK: Tensor, count: int, generator: torch.Generator) -> Tensor:
    k = taken_RK.shape[1]
    drawn: Tensor = torch.randn(count, k, generator=generator, dtype=torch.float64)
    drawn = drawn.to(taken_RK.device)
    basis = taken_RK.to(torch.float64)
    if basis.shape[0] + count <= k:
        q_KR, r_RR = torch.linalg.qr(torch.cat([basis, drawn]).T)
        signs = r_RR.diagonal()[-count:].sign()
        drawn = (q_KR[:, -count:] * signs).T
    norms: Tensor = torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    return drawn / norms * FRESH_ROW_NORM
