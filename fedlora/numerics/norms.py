"""Frobenius norms and inner products of low-rank products, without the products.

Trace   <B1 A1, B2 A2>_F = sum_ab (B1^T B2)[a,b] (A1 A2^T)[a,b]              O(r^2 (d + k))
Core    B = Q_B R_B, A^T = Q_A R_A:  |B A|_F = |R_B R_A^T|_F                 twice the flops

With m = sum_i |b_i| |a_i| over the components, the squared norm from the trace is known to
eps m^2, and the norm from the core to eps m, since the QR factorisation is stable column by
column. So a norm far below m, where components cancel (two factorisations of nearly one
product, side by side), has no digit in the trace form from sqrt(eps) m on, and all but a few in
the core form. `product_norm` takes the trace, and the core where the trace says that it has
lost half of its digits.

Shape suffixes: R, S ranks, K in_features, D out_features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["product_inner", "product_norm"]

_CANCELLATION = 1e-4
"""norm / m below which the core form is used; the trace form is good to 1e-8 of the norm there"""


def product_inner(b1_DR: Tensor, a1_RK: Tensor, b2_DS: Tensor, a2_SK: Tensor) -> float:
    """<b1 @ a1, b2 @ a2>_F without either product."""
    left_RS = b1_DR.to(torch.float64).T @ b2_DS.to(torch.float64)
    right_RS = a1_RK.to(torch.float64) @ a2_SK.to(torch.float64).T
    return float((left_RS * right_RS).sum())


def product_norm(b_DR: Tensor, a_RK: Tensor) -> float:
    """|b @ a|_F without the product."""
    b_DR, a_RK = b_DR.to(torch.float64), a_RK.to(torch.float64)
    gram_b, gram_a = b_DR.T @ b_DR, a_RK @ a_RK.T
    norm = math.sqrt(max(0.0, float((gram_b * gram_a).sum())))
    largest = float((gram_b.diagonal() * gram_a.diagonal()).clamp(min=0).sqrt().sum())
    if norm >= _CANCELLATION * largest:
        return norm
    core = torch.linalg.qr(b_DR, mode="r").R @ torch.linalg.qr(a_RK.T, mode="r").R.T
    return float(torch.linalg.matrix_norm(core))
