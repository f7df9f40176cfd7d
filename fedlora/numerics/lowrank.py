"""The singular value decomposition of a product of stacked factors, in the small space.

With T = B A, B = [B_1 .. B_U] (D x R, weights already in it) and A = [A_1; ..; A_U] (R x K):

QR core     B = Q_B R_B, A^T = Q_A R_A, R_B R_A^T = U S V^T; T = (Q_B U) S (Q_A V)^T.
            Accurate to eps * s_1 in every singular value, so also for the small ones that make
            up Eckart and Young's bound (1936); about 4 (D + K) R^2 + 20 R^3 flops.
Gram core   B^T B = V_B L_B V_B^T, A A^T = V_A L_A V_A^T, C = L_B^1/2 V_B^T V_A L_A^1/2
            = U S V^T; T = (B V_A L_A^1/2 V S^-1) S (S^-1 U^T L_B^1/2 V_B^T A).
            Divides by kept singular values only, never by an eigenvalue of a Gram matrix, so
            nearly collinear clients do no harm to T_q. Small singular values are noise below
            sqrt(eps) * s_1: use the QR core for bounds. Faster where R << D, K.

Signs: the entry of largest magnitude in each left vector is positive, so that results agree
across BLAS builds (up to ties between singular values).

Shape suffixes: N = min(R, D, K) singular values, Q kept components, R sum of ranks,
K in_features, D out_features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.numerics.gram import gram_matrix

__all__ = ["ProductSVD", "effective_rank", "gram_core_svd", "qr_core_svd"]


@dataclass(frozen=True, slots=True)
class ProductSVD:
    """All singular values of T, and the leading singular vectors that are not noise."""

    left_DQ: Tensor
    """orthonormal columns"""
    values_N: Tensor
    """descending"""
    right_QK: Tensor
    """orthonormal rows"""

    @property
    def rank(self) -> int:
        """Components kept: at most the number asked for, fewer where T has a lower rank."""
        return self.left_DQ.shape[1]

    def tail_norm(self, rank: int) -> float:
        """|T - T_q|_F, the least error of any product of that rank (Eckart and Young).

        The tail's own squares are added; |T|^2 minus the head's would cancel.
        """
        return float(torch.linalg.vector_norm(self.values_N[rank:]))


def effective_rank(values_N: Tensor) -> float:
    """(sum s)^2 / sum s^2: N for N equal singular values, 1 for a single one, 0 for none."""
    squares = float(values_N.square().sum())
    return float(values_N.sum()) ** 2 / squares if squares > 0 else 0.0


def qr_core_svd(b_blocks: Sequence[Tensor], a_blocks: Sequence[Tensor], *, rank: int) -> ProductSVD:
    """Singular value decomposition of sum_u b_u @ a_u by two QR factorisations.

    Args:
        b_blocks: D x r_u each.
        a_blocks: r_u x K each.
        rank: singular vectors wanted.
    """
    b_DR = torch.cat([b.to(torch.float64) for b in b_blocks], dim=1)
    a_KR = torch.cat([a.to(torch.float64) for a in a_blocks], dim=0).T
    q_b, r_b = torch.linalg.qr(b_DR)
    q_a, r_a = torch.linalg.qr(a_KR)
    u, values_N, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    keep = min(rank, _numerical_rank(values_N, b_DR.shape[0], a_KR.shape[0]))
    return _signed(q_b @ u[:, :keep], values_N, vh[:keep] @ q_a.T)


def gram_core_svd(
    b_blocks: Sequence[Tensor], a_blocks: Sequence[Tensor], *, rank: int
) -> ProductSVD:
    """As `qr_core_svd`, from the two R x R Gram matrices."""
    b_DR = torch.cat([b.to(torch.float64) for b in b_blocks], dim=1)
    a_RK = torch.cat([a.to(torch.float64) for a in a_blocks], dim=0)
    root_b = _root(gram_matrix(b_blocks))
    root_a = _root(gram_matrix([a.T for a in a_blocks])).T
    u, values_R, vh = torch.linalg.svd(root_b @ root_a)
    # More values than T can have are rounding noise of the Gram matrices.
    values_N = values_R[: min(b_DR.shape[0], a_RK.shape[1])]
    keep = min(rank, _numerical_rank(values_N, b_DR.shape[0], a_RK.shape[1], gram=True))
    kept = values_N[:keep]
    left_DQ = b_DR @ (root_a @ vh[:keep].T / kept)
    right_QK = (u[:, :keep].T / kept[:, None] @ root_b) @ a_RK
    return _signed(left_DQ, values_N, right_QK)


def _root(gram_RR: Tensor) -> Tensor:
    """H with H^T H = G; negative eigenvalues are rounding, and clamped to 0."""
    values_R, vectors_RR = torch.linalg.eigh(gram_RR)
    root_RR: Tensor = values_R.clamp(min=0).sqrt()[:, None] * vectors_RR.T
    return root_RR


def _numerical_rank(values_N: Tensor, d: int, k: int, *, gram: bool = False) -> int:
    """How many singular values are not rounding noise.

    A Gram core takes roots of eigenvalues that are known to eps, so one deficient factor leaves
    values of sqrt(eps) that T does not have; what is lost with them is below float32's rounding.
    """
    eps = torch.finfo(torch.float64).eps
    noise = 4 * math.sqrt(eps) if gram else max(d, k) * eps
    if values_N.numel() == 0:
        return 0
    return int((values_N > noise * values_N[0]).sum())


def _signed(left_DQ: Tensor, values_N: Tensor, right_QK: Tensor) -> ProductSVD:
    if left_DQ.shape[1] == 0:
        return ProductSVD(left_DQ, values_N, right_QK)
    largest = left_DQ.abs().argmax(dim=0, keepdim=True)
    signs_Q = left_DQ.gather(0, largest).squeeze(0).sign()
    return ProductSVD(left_DQ * signs_Q, values_N, right_QK * signs_Q[:, None])
