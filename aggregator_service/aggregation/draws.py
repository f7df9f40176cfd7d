"""Adapters that change nothing yet: one factor drawn at random, the other zero.

    initial       orthogonal rows of the norm that PEFT's initial lora_A has
    normal        independent normal entries of variance 1 / n, n the row's length
    orthonormal   orthonormal rows; above rank n, orthonormal columns

With the drawn factor A (R x K, n = K) frozen, a step of B along -G A^T moves the product by
-G A^T A. For orthonormal rows A^T A is the projection on a random subspace of dimension R, of
mean (R / K) I; for normal entries it has the same mean but is no projection. The same holds for
B (D x R) with n = D.

Numbers are drawn on the CPU in float64 and published: bits of random generators differ between
devices and versions, so a seed would not give every worker the same factor.

Shape suffixes: R rank, N the drawn factor's long side, K in_features, D out_features.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

from aggregator_service.aggregation.spare_components import fresh
from fedlora.adapters.factors import LoraFactors

__all__ = ["Law", "Side", "drawn_adapter"]


class Side(enum.StrEnum):
    """A factor of the product B A."""

    A = "a"
    B = "b"


class Law(enum.StrEnum):
    """How a random factor is distributed."""

    INITIAL = "initial"
    NORMAL = "normal"
    ORTHONORMAL = "orthonormal"


def drawn_adapter(
    like: LoraFactors, rank: int, *, drawn: Side, law: Law, generator: torch.Generator
) -> LoraFactors:
    """The zero product of rank `rank`, of the shape and on the device of `like`, in float64."""
    d, k = like.out_features, like.in_features
    rows_RN = _rows(rank, k if drawn is Side.A else d, law, generator).to(like.a_RK.device)
    if drawn is Side.A:
        return LoraFactors(rows_RN, rows_RN.new_zeros(d, rank))
    return LoraFactors(rows_RN.new_zeros(rank, k), rows_RN.T.contiguous())


def _rows(rank: int, length: int, law: Law, generator: torch.Generator) -> Tensor:
    if law is Law.INITIAL:
        return fresh(1, length, rank, torch.device("cpu"), generator).a_RK
    normal_RN: Tensor = torch.randn(rank, length, generator=generator, dtype=torch.float64)
    if law is Law.NORMAL:
        return normal_RN / math.sqrt(length)
    # With a positive diagonal of R the factorisation is unique: the same Q from every BLAS build,
    # and a law that no rotation changes.
    tall = normal_RN if rank > length else normal_RN.T
    q, r = torch.linalg.qr(tall)
    unique: Tensor = q * r.diagonal().sign()
    return unique if rank > length else unique.T
