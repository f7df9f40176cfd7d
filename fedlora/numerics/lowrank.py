"""The singular value decomposition of a product of stacked factors, in the small space.

With T = B A, B = [B_1 .. B_U] (D x R, weights already in it) and A = [A_1; ..; A_U] (R x K):

QR core     B = Q_B R_B, A^T = Q_A R_A, R_B R_A^T = U S V^T; T = (Q_B U) S (Q_A V)^T.
            Accurate to eps * s_1 in every singular value, so also for the small ones that make
            up Eckart and Young's bound (1936); about 4 (D + K) R^2 + 20 R^3 flops.
Gram core   B^T B = V_B L_B V_B^T, A A^T = V_A L_A V_A^T, C = L_B^1/2 V_B^T V_A L_A^1/2
            = U S V^T; T = (B V_A L_A^1/2 V S^-1) S (S^-1 U^T L_B^1/2 V_B^T A).
            Divides by kept singular values only, never by an eigenvalue of a Gram matrix, so
            nearly collinear clients do no harm to T_q. Small singular values are noise below
            sqrt(eps) * |B| |A| max w, which is more than s_1 where terms cancel (`terms_norm`):
            use the QR core for bounds. Faster where R << D, K. Where both Gram matrices are
            definite their Cholesky factors do what the eigenvectors do, for less.

Signs: the entry of largest magnitude in each left vector is positive, so that results agree
across BLAS builds (up to ties between singular values).

Shape suffixes: N = min(R, D, K) singular values, Q kept components, R sum of ranks,
K in_features, D out_features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora.numerics.blocks import BlockProduct

__all__ = [
    "ProductSVD",
    "effective_rank",
    "gram_core_svd",
    "gram_core_values",
    "numerical_rank",
    "qr_core_svd",
    "signed",
    "terms_norm",
]


_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class ProductSVD:
    """Singular values of T, and the leading singular vectors that are not noise.

    All values, unless `is_estimate`.
    """

    left_DQ: Tensor
    """orthonormal columns"""
    values_N: Tensor
    """descending"""
    right_QK: Tensor
    """orthonormal rows"""
    unseen_norm: float = 0.0
    """Frobenius norm of what `values_N` leave out"""
    unseen_count: float = 0.0
    """how many equal singular values that is worth"""
    is_estimate: bool = False
    """`values_N` are the leading values only and underestimates, `unseen_*` estimates"""
    terms_norm: float = 0.0
    """see the function of that name; 0 where no Gram matrix was asked"""

    @property
    def rank(self) -> int:
        """Components kept: at most the number asked for, fewer where T has a lower rank."""
        return self.left_DQ.shape[1]

    def tail_norm(self, rank: int) -> float:
        """|T - T_q|_F, the least error of any product of that rank (Eckart and Young).

        The tail's own squares are added; |T|^2 minus the head's would cancel.
        """
        return math.hypot(float(torch.linalg.vector_norm(self.values_N[rank:])), self.unseen_norm)

    def effective_rank(self) -> float:
        """As the function of that name, with what the values leave out as equal values."""
        squares = float(self.values_N.square().sum()) + self.unseen_norm**2
        nuclear = float(self.values_N.sum()) + self.unseen_count**0.5 * self.unseen_norm
        return nuclear**2 / squares if squares > 0 else 0.0


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
    packed_b, scales_b = torch.geqrf(b_DR)
    packed_a, scales_a = torch.geqrf(a_KR)
    core = _upper(packed_b) @ _upper(packed_a).T
    u, values_N, vh = torch.linalg.svd(core, full_matrices=False)
    keep = min(rank, numerical_rank(values_N, noise=max(len(b_DR), len(a_KR)) * _EPS))
    left_DQ = _turned(packed_b, scales_b, u[:, :keep])
    right_KQ = _turned(packed_a, scales_a, vh[:keep].T)
    return signed(ProductSVD(left_DQ, values_N, right_KQ.T))


def gram_core_svd(product: BlockProduct, *, rank: int | Callable[[Tensor], int]) -> ProductSVD:
    """As `qr_core_svd`, from the two R x R Gram matrices; nothing is stacked.

    Args:
        product: T, by its blocks.
        rank: singular vectors wanted, or how many those are once the singular values are known.
    """
    d, k = product.shape
    weights_R = product.component_weights
    gram_b, gram_a = product.gram_b(), product.gram_a()
    root_b, root_a = _root(gram_b) * weights_R, _root(gram_a)
    core_RR = root_b @ root_a.T
    # Its squares are known to eps as the Gram matrices are, so they are all that is asked for, at
    # half the price of the values themselves.
    squares_R, vectors_RR = torch.linalg.eigh(core_RR.T @ core_RR)
    # More values than T can have are rounding noise of the Gram matrices.
    values_N = squares_R.clamp(min=0).sqrt().flip(0)[: min(d, k)]
    # One deficient factor leaves values of sqrt(eps) that T does not have; what is lost with them
    # is below float32's rounding.
    wanted = rank(values_N) if callable(rank) else rank
    keep = min(wanted, numerical_rank(values_N, noise=4 * math.sqrt(_EPS)))
    kept, v_RQ = values_N[:keep], vectors_RR.flip(1)[:, :keep]
    left_DQ = product.combine_b(weights_R[:, None] * (root_a.T @ (v_RQ / kept)))
    right_QK = product.combine_a(((core_RR @ v_RQ) / kept.square()).T @ root_b)
    terms = terms_norm(gram_b, gram_a, weights_R)
    return signed(ProductSVD(left_DQ, values_N, right_QK, terms_norm=terms))


def gram_core_values(gram_b: Tensor, gram_a: Tensor, weights_R: Tensor) -> Tensor:
    """Singular values, descending, of B diag(w) A from the Gram matrices of B and A, R of them."""
    core_RR = (_root(gram_b) * weights_R.to(gram_b)) @ _root(gram_a).T
    squares_R: Tensor = torch.linalg.eigvalsh(core_RR.T @ core_RR)
    return squares_R.clamp(min=0).sqrt().flip(0)


def terms_norm(gram_b: Tensor, gram_a: Tensor, weights_R: Tensor) -> float:
    """What |B diag(w) A| cannot exceed; squares are right to a share of it, and not of |T|.

    The terms of T may cancel, and what rounding leaves of a large one has any weight of the others.
    """
    sides = float(gram_b.trace()) * float(gram_a.trace())
    return float(weights_R.abs().max()) * math.sqrt(sides)


def _root(gram_RR: Tensor) -> Tensor:
    """H with H^T H = G; negative eigenvalues are rounding, and clamped to 0."""
    factor_RR: Tensor
    factor_RR, failed = torch.linalg.cholesky_ex(gram_RR, upper=True)
    if int(failed) == 0:
        return factor_RR
    values_R, vectors_RR = torch.linalg.eigh(gram_RR)
    root_RR: Tensor = values_R.clamp(min=0).sqrt()[:, None] * vectors_RR.T
    return root_RR


def _upper(reflectors: Tensor) -> Tensor:
    """R of a QR factorisation, min(rows, columns) rows."""
    return reflectors[: min(reflectors.shape)].triu()


def _turned(reflectors: Tensor, scales: Tensor, small: Tensor) -> Tensor:
    """Q @ small, by applying the reflections: Q itself would cost as much as finding it."""
    tall = small.new_zeros(reflectors.shape[0], small.shape[1])
    tall[: small.shape[0]] = small
    count = min(reflectors.shape)
    return torch.ormqr(reflectors[:, :count], scales, tall)


def numerical_rank(values_N: Tensor, *, noise: float) -> int:
    """How many singular values, descending, are above `noise` of the first."""
    if values_N.numel() == 0:
        return 0
    return int((values_N > noise * values_N[0]).sum())


def signed(svd: ProductSVD) -> ProductSVD:
    """With the entry of largest magnitude of each left vector positive."""
    if svd.rank == 0:
        return svd
    largest = svd.left_DQ.abs().argmax(dim=0, keepdim=True)
    signs_Q = svd.left_DQ.gather(0, largest).squeeze(0).sign()
    return replace(svd, left_DQ=svd.left_DQ * signs_Q, right_QK=svd.right_QK * signs_Q[:, None])
