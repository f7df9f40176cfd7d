"""The gauge of what is sent back: T_q = U S V^T fixes a product, not its factors.

(B M^-1, M A) is the same model for every invertible M, but not the same optimisation problem:
one SGD step changes the product by -lr s^2 (B B^T G + G A^T A), and Adam moves each entry by
about the learning rate whatever the entry's size.

    balanced         B = U S^1/2,     A = S^1/2 V^T      |B| = |A|; least |A|^2 + |B|^2
    orthonormal A    B = U S,         A = V^T            a B-only step is G on the row space
    orthonormal B    B = U,           A = S V^T          for A-only rounds
    closest A        B = U S M^-1,    A = M V^T          M = A_ref V: the row space's point
                                                         nearest to A_ref, the clients' basis
    procrustes       B = U S^1/2 O^T, A = O S^1/2 V^T    O orthogonal, nearest to (B, A)_ref

A component whose singular value is 0 has, balanced, a zero column in B and a zero row in A:
a saddle whose gradient is zero for ever. `filled` gives such components random rows in A, so
that the product stays and B can learn.

Shape suffixes: Q kept components, R rank, K in_features, D out_features.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import ProductSVD

__all__ = ["Gauge", "filled", "fresh", "in_gauge"]

FRESH_ROW_NORM = 3**-0.5
"""norm of a row of PEFT's initial lora_A: K entries, uniform in +-1/sqrt(K)"""

MAX_CONDITION = 1e3
"""of M in the gauge closest to A; beyond it M^-1 would blow B up"""


class Gauge(enum.StrEnum):
    """Which factors of the product are sent."""

    BALANCED = "balanced"
    ORTHONORMAL_A = "orthonormal_a"
    ORTHONORMAL_B = "orthonormal_b"
    CLOSEST_A = "closest_a"
    PROCRUSTES = "procrustes"


def in_gauge(svd: ProductSVD, gauge: Gauge, reference: Callable[[], LoraFactors]) -> LoraFactors:
    """U S V^T as factors of rank Q = `svd.rank` >= 1.

    Args:
        svd: the truncated decomposition.
        gauge: which factors.
        reference: makes what the last two gauges stay close to, and is called by those only.
            Missing components are zero, those beyond Q are not looked at.
    """
    q = svd.rank
    values_Q, root_Q = svd.values_N[:q], svd.values_N[:q].sqrt()
    left_DQ, right_QK = svd.left_DQ, svd.right_QK
    if gauge is Gauge.ORTHONORMAL_A:
        return LoraFactors(right_QK, left_DQ * values_Q)
    if gauge is Gauge.ORTHONORMAL_B:
        return LoraFactors(values_Q[:, None] * right_QK, left_DQ)
    b_DQ, a_QK = left_DQ * root_Q, root_Q[:, None] * right_QK
    if gauge is Gauge.BALANCED:
        return LoraFactors(a_QK, b_DQ)
    near = reference().to(torch.float64)
    near = near.padded(max(near.rank, q))
    a_ref, b_ref = near.a_RK[:q], near.b_DR[:, :q]
    if gauge is Gauge.CLOSEST_A:
        m_QQ = _bounded(a_ref @ right_QK.T)
        return LoraFactors(
            m_QQ @ right_QK, torch.linalg.solve(m_QQ, left_DQ * values_Q, left=False)
        )
    # Orthogonal O changes no norm, so the pair is compared after one scalar has balanced it.
    balance = _balance(a_ref, b_ref)
    n_QQ = (a_ref * balance) @ a_QK.T + (b_ref / balance).T @ b_DQ
    x, _, yh = torch.linalg.svd(n_QQ)
    o_QQ = x @ yh
    return LoraFactors(o_QQ @ a_QK, b_DQ @ o_QQ.T)


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


def _bounded(m_QQ: Tensor) -> Tensor:
    """M with condition number at most MAX_CONDITION: exact product, only "closest" is given up."""
    x, values, yh = torch.linalg.svd(m_QQ)
    if float(values[0]) == 0.0:
        return torch.eye(len(values), dtype=m_QQ.dtype, device=m_QQ.device)
    bounded: Tensor = x @ (values.clamp(min=float(values[0]) / MAX_CONDITION)[:, None] * yh)
    return bounded


def _balance(a_ref: Tensor, b_ref: Tensor) -> float:
    """Scalar t with |t A| = |B / t|; 1 where one of them is zero."""
    a, b = float(torch.linalg.vector_norm(a_ref)), float(torch.linalg.vector_norm(b_ref))
    return (b / a) ** 0.5 if a > 0 and b > 0 else 1.0
