"""Frobenius norms and inner products of low-rank products, as traces of Gram matrices.

    <B1 A1, B2 A2>_F = sum_ab (B1^T B2)[a,b] (A1 A2^T)[a,b]          O(r^2 (d + k))

A norm computed this way is accurate to sqrt(eps) of the LARGEST term of a sum that cancels;
so a small difference has to be handed over as small factors (one side a difference that was
taken elementwise), never as [X, -Y] of two large, nearly equal products.

Shape suffixes: R, S ranks, K in_features, D out_features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["product_inner", "product_norm"]


def product_inner(b1_DR: Tensor, a1_RK: Tensor, b2_DS: Tensor, a2_SK: Tensor) -> float:
    """<b1 @ a1, b2 @ a2>_F without either product."""
    left_RS = b1_DR.to(torch.float64).T @ b2_DS.to(torch.float64)
    right_RS = a1_RK.to(torch.float64) @ a2_SK.to(torch.float64).T
    return float((left_RS * right_RS).sum())


def product_norm(b_DR: Tensor, a_RK: Tensor) -> float:
    """|b @ a|_F without the product."""
    return math.sqrt(max(0.0, product_inner(b_DR, a_RK, b_DR, a_RK)))
