"""Randomised decomposition of a product of many stacked factors.

Source  Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate
        singular value decomposition", NeurIPS 2015; the norm of what is left by probes as in
        Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53(2), 2011,
        section 4.3.
Rule    W = orth(random K x L), or rows that are known to matter, then again and again
            T W = U S H        of which U has the leading L columns
            W = orth([W, T^T U])
        so every T^T U both tells what the columns of U hold of T and where to look next.
Stop    When further steps would add less to the squares of the leading values than is allowed.
        T^T U adds the square of what it has beside W, known without cancellation. That falls off
        by a nearly constant factor, so the rest is a geometric series. At most `_STEPS`.
Bias    singular values are underestimates, by what is not yet found. The error of the leading
        components is below 1e-3 above Eckart and Young's, for flat spectra too.
Cost    2 (D + K) R L flops per product with T: four where the components asked for stand out,
        eight to ten where they are of a flat tail. For R above min(D, K) / 4 far less than any
        R x R core, and no memory beside a few columns.

What a projection misses is measured, not bounded: with random signs Z, |(T - T W W^T) Z|^2 over
the number of probes is |T - T W W^T|^2 on average. The probes ride on the first product.

Shape suffixes: L = rank rounded up columns, M columns of W, N columns of what W is begun with,
Z probes, R sum of ranks, K in_features, D out_features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.numerics.blocks import BlockProduct
from fedlora.numerics.lowrank import ProductSVD, numerical_rank, signed

__all__ = ["Projection", "projection", "randomised_svd"]

_LANES = 16
"""columns come in multiples: a product with 17 costs as much as one with 32"""
_STEPS = 6
_PROBES = 16
_EXCESS = 4e-4
"""of the error over Eckart and Young's that is left to find; less than half of what is promised,
since it is an estimate"""
_SLOWEST, _FASTEST = 0.9, 0.7
"""bounds of what one product gains over what the one before did: early on a few strong components
may be found at once, and a flat tail slowly"""
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
    found = projection(product, rank=rank)
    # U U^T T, not T W W^T: one product more is in it.
    q_DL = found.left_DL
    v_KL, values_L, uh = torch.linalg.svd(found.back_KL, full_matrices=False)
    norm, count = _spread(found.probed_DZ - q_DL @ (q_DL.T @ found.probed_DZ))
    # Rounding of a product with T, whose errors have no sign in common: a bound would be its
    # square, and drop in float32 what small drifts have left in the tail.
    noise = _ROUNDING * max(product.shape) ** 0.5 * torch.finfo(product.working_dtype).eps
    keep = min(rank, numerical_rank(values_L, noise=noise))
    return signed(
        ProductSVD(
            q_DL @ uh[:keep].T,
            values_L,
            v_KL[:, :keep].T,
            unseen_norm=norm,
            unseen_count=count,
            is_estimate=True,
        )
    )


def projection(
    product: BlockProduct,
    *,
    rank: int,
    near: Sequence[Tensor] = (),
    dtype: torch.dtype | None = None,
    seed: int = _SEED,
) -> Projection:
    """T on a basis of its rows that holds its leading `rank` components, all but.

    Args:
        product: T, by its blocks.
        rank: as above.
        near: rows, r x K each, that the basis shall contain; it begins with them.
        dtype: of products with T; None for the product's working type.
        seed: of what is drawn.
    """
    d, k = product.shape
    most = min(*product.shape, product.rank)
    columns = min(-(-rank // _LANES) * _LANES, most)
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype or product.working_dtype

    def times(x_KL: Tensor) -> Tensor:
        # The columns are rounded with the products, whose rounding is no smaller.
        return product.times(x_KL.to(dtype)).to(torch.float64)

    drawn_KL = torch.randn(k, columns, generator=generator, dtype=torch.float64)
    signs_KZ = (torch.randint(0, 2, (k, _PROBES), generator=generator) * 2 - 1).to(drawn_KL)
    drawn_KL, signs_KZ = drawn_KL.to(product.device), signs_KZ.to(product.device)
    rows = [part.to(torch.float64).T for part in near]
    if rows and d <= sum(part.shape[1] for part in rows) + 2 * columns:
        # Hardly more columns than those, and all that T has: nothing is left to look for.
        eye_DD = torch.eye(d, dtype=dtype, device=product.device)
        rows.append(product.transposed_times(eye_DD).to(torch.float64))
    block_KN = _orthonormal(torch.cat(rows, dim=1) if rows else drawn_KL)
    images = times(torch.cat([block_KN, signs_KZ], dim=1))
    image_DN = images[:, :-_PROBES]
    found = Projection(signs_KZ, images[:, -_PROBES:])
    gains: list[float] = []
    while True:
        found.add(block_KN, image_DN)
        left_DL = found.leading(columns)
        found.know(left_DL, product.transposed_times(left_DL.to(dtype)).to(torch.float64))
        gains.append(found.gain(rank))
        lost = float(found.values_M[rank:].square().sum()) + found.missed_norm**2
        room = most - found.size if len(gains) < _STEPS else 0
        # Few strong components beside W: the rows that it began with may know nothing of them.
        blind = len(gains) == 1 and rows and found.missed_count < columns
        if room <= 0 or (not blind and _rest(gains) <= 2 * _EXCESS * lost):
            break
        further = torch.cat([drawn_KL, found.back_KL], dim=1) if blind else found.back_KL
        block_KN = found.lacking(further)[:, :room]
        image_DN = times(block_KN)
    return found


class Projection:
    """T W for an orthonormal W that grows, and what T has beside it, in float64.

    Args:
        signs_KZ: Z.
        probed_DZ: T Z.
    """

    left_DL: Tensor
    """leading columns of U in T W = U S H"""
    back_KL: Tensor
    """T^T times them"""
    values_M: Tensor
    """S, descending: underestimates of T's, and by squares: noise below 1e-8 of the first"""
    missed_norm: float
    """|T - T W W^T|, estimated"""
    missed_count: float
    """how many equal singular values it is worth"""

    def __init__(self, signs_KZ: Tensor, probed_DZ: Tensor) -> None:
        self._signs_KZ = signs_KZ
        self.probed_DZ = probed_DZ
        """T Z"""
        self.basis_KM = self._signs_KZ[:, :0]
        """W"""
        self._image_DM = self.probed_DZ[:, :0]
        self._gram_MM = self.basis_KM.new_zeros(0, 0)

    @property
    def size(self) -> int:
        """M."""
        return self.basis_KM.shape[1]

    def add(self, block_KN: Tensor, image_DN: Tensor) -> None:
        """Adds columns that `lacking` has made, and T times them."""
        self.basis_KM = torch.cat([self.basis_KM, block_KN], dim=1)
        self._image_DM = torch.cat([self._image_DM, image_DN], dim=1)
        self._gram_MM = _bordered(self._gram_MM, self._image_DM)
        squares_M, turn_MM = torch.linalg.eigh(self._gram_MM)
        self.values_M, self._turn_MM = squares_M.clamp(min=0).sqrt().flip(0), turn_MM.flip(1)
        self._signs_MZ = self.basis_KM.T @ self._signs_KZ
        self.missed_norm, self.missed_count = _spread(self._missed(self._image_DM, self.probed_DZ))

    def lacking(self, columns: Tensor) -> Tensor:
        """What the basis does not have of these columns, orthonormal."""
        basis_KM, block_KN = self.basis_KM, _orthonormal(columns)
        for _ in range(2):
            block_KN = _orthonormal(block_KN - basis_KM @ (basis_KM.T @ block_KN))
        return block_KN

    def gain(self, rank: int) -> float:
        """Sum of the squares of what the first columns of T^T U have beside W."""
        back_KL = self.back_KL[:, :rank]
        beside_KL = back_KL - self.basis_KM @ (self.basis_KM.T @ back_KL)
        return float(beside_KL.square().sum())

    def leading(self, count: int) -> Tensor:
        """The first columns of U, orthonormal also where values are zero."""
        # What lies below rounding is rounding: divided by itself, it would outgrow any float.
        limits = torch.finfo(torch.float64)
        smallest = max(float(self.values_M[:1].sum()) * limits.eps, limits.tiny**0.5)
        image_DL = self._image_DM @ self._turn_MM[:, :count]
        return _orthonormal(image_DL / self.values_M[:count].clamp(min=smallest))

    def know(self, left_DL: Tensor, back_KL: Tensor) -> None:
        """Takes what `leading` gave, and T^T times it."""
        self.left_DL, self.back_KL = left_DL, back_KL

    def small_values(self) -> Tensor:
        """S without squares, right to rounding; D M^2 flops."""
        values_M: Tensor = torch.linalg.svdvals(self._image_DM)
        return values_M

    def distance(self, b_DR: Tensor, a_RK: Tensor) -> float:
        """|T - B A|: exact on the basis, estimated beside it."""
        b_DR, a_RK = b_DR.to(torch.float64), a_RK.to(torch.float64)
        gap_DM = self._image_DM - b_DR @ (a_RK @ self.basis_KM)
        probed_DZ = self.probed_DZ - b_DR @ (a_RK @ self._signs_KZ)
        seen = float(torch.linalg.vector_norm(gap_DM))
        return math.hypot(seen, _spread(self._missed(gap_DM, probed_DZ))[0])

    def _missed(self, image_DM: Tensor, probed_DZ: Tensor) -> Tensor:
        return probed_DZ - image_DM @ self._signs_MZ


def _rest(gains: Sequence[float]) -> float:
    """What all further products would add, from what every second one has."""
    ratio = _SLOWEST
    if len(gains) > 1 and gains[-1] < gains[-2]:
        ratio = min(max(math.sqrt(gains[-1] / gains[-2]), _FASTEST), _SLOWEST)
    return gains[-1] * ratio / (1 - ratio)


def _bordered(gram: Tensor, columns: Tensor) -> Tensor:
    """The Gram matrix of the columns from that of the first of them."""
    known = len(gram)
    beside = columns.T @ columns[:, known:]
    return torch.cat([torch.cat([gram, beside[:known]], dim=1), beside.T])


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
