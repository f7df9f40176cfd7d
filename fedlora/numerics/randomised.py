"""Randomised singular value decomposition of a product of many stacked factors.

Source  Halko, Martinsson and Tropp, "Finding structure with randomness: probabilistic algorithms
        for constructing approximate matrix decompositions", SIAM Review 53(2), 2011, algorithms
        4.4 and 5.1; the residual's norm by probes as in their section 4.3.
Rule    Y = T X for a random K x L matrix X, Q = orth(Y); twice Q <- orth(T orth(T^T Q));
        Q^T T = U S V^T;  T ~ (Q U) S V^T, of which the first `rank` components are kept.
Bias    singular values are underestimates. Two power steps leave an error of at most 1e-3 above
        Eckart and Young's, also on the flat tail that averaging many clients gives.
Cost    2 (D + K) R (rank + 8) flops per product with T, six of them: for R above min(D, K) / 4
        far less than any R x R core, and no memory beside a few columns.

What Q misses is measured, not bounded: with random signs Z, |Z^T (T - Q Q^T T)|^2 / probes is
|T - Q Q^T T|^2 on average. The probes ride on the last product, which is bound by memory.

Shape suffixes: L = rank + oversampling columns, Z probes, R sum of ranks, K in_features,
D out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora.numerics.blocks import BlockProduct
from fedlora.numerics.lowrank import ProductSVD, numerical_rank, signed

__all__ = ["randomised_svd"]

_OVERSAMPLING = 8
_POWER_STEPS = 2
_PROBES = 16
_SEED = 20110516
"""of the test matrices: equal inputs give equal bits, on every device"""


def randomised_svd(product: BlockProduct, *, rank: int) -> ProductSVD:
    """The leading `rank` components of T, with an estimate of what is left.

    Args:
        product: T, by its blocks.
        rank: singular vectors wanted.
    """
    d, k = product.shape
    columns = min(rank + _OVERSAMPLING, d, k, product.rank)
    generator = torch.Generator().manual_seed(_SEED)

    def place(drawn: Tensor) -> Tensor:
        return drawn.to(product.device, product.working_dtype)

    basis_DL = _orthonormal(product.times(place(torch.randn(k, columns, generator=generator))))
    for _ in range(_POWER_STEPS):
        right_KL = _orthonormal(product.transposed_times(basis_DL))
        basis_DL = _orthonormal(product.times(right_KL))
    signs_DZ = place(torch.randint(0, 2, (d, _PROBES), generator=generator) * 2 - 1)
    rows = product.transposed_times(torch.cat([basis_DL, signs_DZ], dim=1)).to(torch.float64)
    basis_DL, signs_DZ = basis_DL.to(torch.float64), signs_DZ.to(torch.float64)
    small_LK, probed_ZK = rows[:, :columns].T, rows[:, columns:].T
    # L x L work: Q^T T = (R^T) Q_a^T with T^T Q = Q_a R.
    q_KL, r_LL = torch.linalg.qr(small_LK.T)
    u, values_L, vh = torch.linalg.svd(r_LL.T)
    eps = torch.finfo(product.working_dtype).eps
    keep = min(rank, numerical_rank(values_L, noise=max(d, k) * eps))
    missed_ZK = probed_ZK - (signs_DZ.T @ basis_DL) @ small_LK
    norm, count = _spread(missed_ZK)
    return signed(
        ProductSVD(
            basis_DL @ u[:, :keep],
            values_L,
            vh[:keep] @ q_KL.T,
            unseen_norm=norm,
            unseen_count=count,
            is_estimate=True,
        )
    )


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _spread(missed_ZK: Tensor) -> tuple[float, float]:
    """|E|, and (sum s^2)^2 / sum s^4 of its singular values: how many equal ones it is worth.

    For random signs z, z' the mean of |z^T E|^2 is sum s^2, that of (z^T E E^T z')^2 is sum s^4.
    """
    inner_ZZ = missed_ZK @ missed_ZK.T
    probes = len(inner_ZZ)
    squares = float(inner_ZZ.diagonal().mean())
    fourth = float(inner_ZZ.square().sum() - inner_ZZ.diagonal().square().sum())
    fourth /= probes * (probes - 1)
    return squares**0.5, squares**2 / fourth if fourth > 0 else 0.0
