"""Randomised singular value decomposition of a product of many stacked factors.

Source  Halko, Martinsson and Tropp, "Finding structure with randomness: probabilistic algorithms
        for constructing approximate matrix decompositions", SIAM Review 53(2), 2011, algorithms
        4.4 and 5.1; the residual's norm by probes as in their section 4.3. Musco and Musco,
        "Randomized block Krylov methods for stronger and faster approximate singular value
        decomposition", NeurIPS 2015, for keeping what earlier steps found.
Rule    V_0 a random K x L matrix; twice V_i = orth(T^T orth(T V_{i-1})); W = orth([V_2, V_1]);
        T W = U S H;  T ~ U S (H W^T), of which the first `rank` components are kept.
        T V_1 is known from the step before and T V_2 is the last product, so W costs no product
        of its own: five in all, where projecting on the columns of T takes a sixth.
Bias    singular values are underestimates. The error is below 1e-3 above Eckart and Young's where
        the components asked for stand out. Where some are of a flat tail it is up to 4e-3 (100
        clients of rank 16 with nothing in common, 4096 x 4096), 2e-2 for layers of 512.
Cost    2 (D + K) R L flops per product with T, five of them: for R above min(D, K) / 4 far less
        than any R x R core, and no memory beside a few columns.

What W misses is measured, not bounded: with random signs Z, |(T - T W W^T) Z|^2 / probes is
|T - T W W^T|^2 on average. The probes ride on the last product.

Shape suffixes: L = rank rounded up columns, M at most 2 L of both bases, Z probes, R sum of ranks,
K in_features, D out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora.numerics.blocks import BlockProduct
from fedlora.numerics.lowrank import ProductSVD, numerical_rank, signed

__all__ = ["randomised_svd"]

_LANES = 16
"""columns come in multiples: a product with 17 costs as much as one with 32"""
_POWER_STEPS = 2
_PROBES = 16
_NEW = 1e-3
"""part of an earlier vector that the last basis must lack for it to be kept: what is left of a
smaller one is float32's rounding"""
_ROUNDING = 4
"""singular values below so many times the usual rounding are taken for it"""
_SEED = 20110516
"""of the test matrices: equal inputs give equal bits, on every device"""


def randomised_svd(product: BlockProduct, *, rank: int) -> ProductSVD:
    """The leading `rank` components of T, with an estimate of what is left.

    Args:
        product: T, by its blocks.
        rank: singular vectors wanted.
    """
    d, k = product.shape
    columns = min(-(-rank // _LANES) * _LANES, d, k, product.rank)
    generator = torch.Generator().manual_seed(_SEED)

    def place(drawn: Tensor) -> Tensor:
        return drawn.to(product.device, product.working_dtype)

    right_KL = place(torch.randn(k, columns, generator=generator))
    for _ in range(_POWER_STEPS):
        earlier_KL, earlier_DL = right_KL, product.times(right_KL)
        right_KL = _orthonormal(product.transposed_times(_orthonormal(earlier_DL)))
    signs_KZ = place(torch.randint(0, 2, (k, _PROBES), generator=generator) * 2 - 1)
    images = product.times(torch.cat([right_KL, signs_KZ], dim=1)).to(torch.float64)
    probed_DZ = images[:, columns:]
    basis_KM, image_DM = _with_earlier(
        right_KL.to(torch.float64),
        images[:, :columns],
        earlier_KL.to(torch.float64),
        earlier_DL.to(torch.float64),
    )
    # M x M work: T W = Q R.
    q_DM, r_MM = torch.linalg.qr(image_DM)
    u, values_M, vh = torch.linalg.svd(r_MM, full_matrices=False)
    # Rounding of a product with T, whose errors have no sign in common: a bound would be its
    # square, and drop in float32 what small drifts have left in the tail.
    noise = _ROUNDING * max(d, k) ** 0.5 * torch.finfo(product.working_dtype).eps
    keep = min(rank, numerical_rank(values_M, noise=noise))
    missed_DZ = probed_DZ - image_DM @ (basis_KM.T @ signs_KZ.to(torch.float64))
    norm, count = _spread(missed_DZ)
    return signed(
        ProductSVD(
            q_DM @ u[:, :keep],
            values_M,
            vh[:keep] @ basis_KM.T,
            unseen_norm=norm,
            unseen_count=count,
            is_estimate=True,
        )
    )


def _with_earlier(
    right_KL: Tensor, image_DL: Tensor, earlier_KL: Tensor, earlier_DL: Tensor
) -> tuple[Tensor, Tensor]:
    """V, and what an earlier basis has beside it, orthonormal; and T times that, without T.

    Args:
        right_KL: V, orthonormal columns.
        image_DL: T V.
        earlier_KL: the earlier basis, orthonormal columns.
        earlier_DL: T times it.
    """
    shared_LL = right_KL.T @ earlier_KL
    rest_KL = earlier_KL - right_KL @ shared_LL
    squares_L, turn_LL = torch.linalg.eigh(rest_KL.T @ rest_KL)
    new = squares_L > _NEW**2
    turn = turn_LL[:, new] / squares_L[new].sqrt()
    rest_image_DL = earlier_DL - image_DL @ shared_LL
    basis_KM = torch.cat([right_KL, rest_KL @ turn], dim=1)
    image_DM = torch.cat([image_DL, rest_image_DL @ turn], dim=1)
    # Orthonormal to the working type's rounding so far; a Cholesky factor near 1 does the rest.
    factor_MM = torch.linalg.cholesky(basis_KM.T @ basis_KM, upper=True)
    return _over(basis_KM, factor_MM), _over(image_DM, factor_MM)


def _over(columns: Tensor, factor: Tensor) -> Tensor:
    quotient: Tensor = torch.linalg.solve_triangular(factor, columns, upper=True, left=False)
    return quotient


def _orthonormal(columns: Tensor) -> Tensor:
    # Householder's: for 16 columns faster than a Cholesky factor in float64, and safe for any.
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _spread(missed_DZ: Tensor) -> tuple[float, float]:
    """|E|, and (sum s^2)^2 / sum s^4 of its singular values: how many equal ones it is worth.

    For random signs z, z' the mean of |E z|^2 is sum s^2, that of (z^T E^T E z')^2 is sum s^4.
    """
    inner_ZZ = missed_DZ.T @ missed_DZ
    probes = len(inner_ZZ)
    squares = float(inner_ZZ.diagonal().mean())
    fourth = float(inner_ZZ.square().sum() - inner_ZZ.diagonal().square().sum())
    fourth /= probes * (probes - 1)
    return squares**0.5, squares**2 / fourth if fourth > 0 else 0.0
