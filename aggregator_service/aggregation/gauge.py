"""The gauge of what is sent back: a product B A = U S V^T does not fix its factors.

(B M^-1, M A) is the same model for every invertible M, but not the same optimisation problem:
one SGD step changes the product by -lr s^2 (B B^T G + G A^T A), and Adam moves each entry by
about the learning rate whatever the entry's size.

    own              as the method and its compression leave them
    balanced         B = U S^1/2,     A = S^1/2 V^T      |B| = |A|; least |A|^2 + |B|^2
    orthonormal_a    B = U S,         A = V^T            a B-only step is G on the row space
    orthonormal_b    B = U,           A = S V^T          for A-only rounds
    closest_a        B = U S M^-1,    A = M V^T          M = A_ref V: the row space's point
                                                         nearest to A_ref
    procrustes       B = U S^1/2 O^T, A = O S^1/2 V^T    O orthogonal, nearest to (B, A)_ref

The reference is what the round began from; where that is not known, as for a cohort of files, the
factor mean. So closest_a and procrustes keep the components that workers and codecs go on with, as
far as the product lets them. The other gauges sort components by strength instead, so that the
first ones are the best adapter of a lower rank.

Taken from published factors by two QR decompositions and one Q x Q singular value decomposition,
4 Q^2 (D + K) + 20 Q^3 flops; the product moves by rounding alone. In a type of narrow range, as
float16, a product that is very small wants balanced factors: the others hold all of S in one.

Components whose singular value is 0 become spare ones (`spare_components`), which can learn.

Shape suffixes: Q kept components, R rank, K in_features, D out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aggregator_service.aggregation.spare_components import filled
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import ProductSVD, qr_core_svd
from fedlora.runs.method import Gauge

__all__ = ["NEAREST", "closest_a", "in_gauge", "sorted_factors"]

NEAREST = frozenset({Gauge.CLOSEST_A, Gauge.PROCRUSTES})
"""gauges that stay near a reference, and so keep its components"""

MAX_CONDITION = 10.0
"""of M in the gauge closest to A. What the reference's rows hardly see comes back with small rows
of A and large columns of B. Adam steps alike in every entry, and so moves the product by |B|: with
1e3 training diverged from the third round on (docs/results.md)"""


def in_gauge(
    factors: LoraFactors, gauge: Gauge, *, reference: LoraFactors, generator: torch.Generator
) -> LoraFactors:
    """The same product in another gauge, at the same rank, in float64.

    A product of zero is left as it is.

    Args:
        factors: of the product.
        gauge: which factors; not `Gauge.OWN`.
        reference: what the last two gauges stay close to. Missing components are zero, those
            beyond the product's rank are not looked at.
        generator: on the CPU, for the rows of spare components.
    """
    svd = qr_core_svd([factors.b_DR], [factors.a_RK], rank=factors.rank)
    if svd.rank == 0:
        return factors
    if gauge is Gauge.CLOSEST_A:
        found = closest_a(svd, reference)
    elif gauge is Gauge.PROCRUSTES:
        found = _procrustes(svd, reference)
    else:
        found = sorted_factors(svd, gauge)
    return filled(found, factors.rank, generator)


def sorted_factors(svd: ProductSVD, gauge: Gauge) -> LoraFactors:
    """U S V^T in one of the gauges that need no reference, strongest component first."""
    values_Q = svd.values_N[: svd.rank]
    if gauge is Gauge.ORTHONORMAL_A:
        return LoraFactors(svd.right_QK, svd.left_DQ * values_Q)
    if gauge is Gauge.ORTHONORMAL_B:
        return LoraFactors(values_Q[:, None] * svd.right_QK, svd.left_DQ)
    root_Q = values_Q.sqrt()
    return LoraFactors(root_Q[:, None] * svd.right_QK, svd.left_DQ * root_Q)


def closest_a(svd: ProductSVD, reference: LoraFactors) -> LoraFactors:
    """U S V^T of rank Q >= 1 with A nearest to the reference's first Q rows."""
    a_ref, _ = _first(reference, svd.rank)
    m_QQ = _bounded(a_ref @ svd.right_QK.T)
    scaled_DQ = svd.left_DQ * svd.values_N[: svd.rank]
    return LoraFactors(m_QQ @ svd.right_QK, torch.linalg.solve(m_QQ, scaled_DQ, left=False))


def _procrustes(svd: ProductSVD, reference: LoraFactors) -> LoraFactors:
    """The balanced factors of U S V^T, turned towards the reference's first Q components."""
    a_ref, b_ref = _first(reference, svd.rank)
    plain = sorted_factors(svd, Gauge.BALANCED)
    # Orthogonal O changes no norm, so the pair is compared after one scalar has balanced it.
    balance = _balance(a_ref, b_ref)
    n_QQ = (a_ref * balance) @ plain.a_RK.T + (b_ref / balance).T @ plain.b_DR
    x, _, yh = torch.linalg.svd(n_QQ)
    o_QQ = x @ yh
    return LoraFactors(o_QQ @ plain.a_RK, plain.b_DR @ o_QQ.T)


def _first(reference: LoraFactors, count: int) -> tuple[Tensor, Tensor]:
    """A and B of the first components, in float64; zeros for missing ones."""
    wide = reference.to(torch.float64).padded(max(reference.rank, count))
    return wide.a_RK[:count], wide.b_DR[:, :count]


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
