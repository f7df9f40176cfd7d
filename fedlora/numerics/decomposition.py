"""Which core decomposes a product of stacked factors: by its rank, and by what was found.

    core         cost                        error above Eckart and Young's   small values
    gram         R^2 (D + K) + 12 R^3        below 1e-6 while the tail is     noise below 1e-8
                                             above `GRAM_TAIL`
    qr           2 R^2 (D + K) + 12 R^3      rounding                         right
    randomised   8 to 20 R (D + K) rank      below 1e-3 of the least error    estimated

`auto` takes the Gram core up to R = min(D, K) / 4, or 256 where that is more, and looks at what it
found: where next to nothing is lost beside the size of the terms, its values are too coarse to say
what, and the QR core answers again. Above that rank a core of R x R costs more than reading the
factors a few times: the randomised one, and no Gram matrix at all. Below 4 rank + 32 components the
QR core is cheap enough to be asked at once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedlora.numerics.blocks import BlockProduct
from fedlora.numerics.lowrank import ProductSVD, gram_core_svd, qr_core_svd
from fedlora.numerics.randomised import randomised_svd

__all__ = ["GRAM_TAIL", "Core", "decompose", "decompose_to", "is_estimated"]

GRAM_TAIL = 1e-5
"""share of `terms_norm`; the Gram core knows squares to eps, and a tail of this size to 1e-6 of
itself"""

_SMALL = 256
"""R of cores that take a few milliseconds, whatever the layer"""


class Core(enum.StrEnum):
    """How the large products are reduced to a small one."""

    AUTO = "auto"
    QR = "qr"
    GRAM = "gram"
    RANDOMISED = "randomised"


def decompose(product: BlockProduct, *, rank: int, core: Core = Core.AUTO) -> ProductSVD:
    """Singular values of T, and its leading `rank` components.

    Args:
        product: T, by its blocks.
        rank: singular vectors wanted.
        core: how.
    """
    if core is Core.AUTO:
        return _chosen(product, rank)
    if core is Core.RANDOMISED:
        return randomised_svd(product, rank=rank)
    if core is Core.GRAM:
        return gram_core_svd(product, rank=rank)
    return _qr(product, rank)


def decompose_to(product: BlockProduct, choose: Callable[[Tensor], int]) -> ProductSVD:
    """All singular values of T, and as many leading components as they ask for.

    By the Gram core where that is right about what is left over, by the QR core otherwise.

    Args:
        product: T, by its blocks.
        choose: from all singular values, descending, to the components wanted.
    """
    if product.rank <= _core_limit(*product.shape):
        svd = gram_core_svd(product, rank=choose)
        if svd.tail_norm(choose(svd.values_N)) > GRAM_TAIL * svd.terms_norm:
            return svd
    svd = _qr(product, product.rank)
    kept = min(choose(svd.values_N), svd.rank)
    return replace(svd, left_DQ=svd.left_DQ[:, :kept], right_QK=svd.right_QK[:kept])


def is_estimated(total: int, out_features: int, in_features: int, *, rank: int) -> bool:
    """Whether a product of that many components is looked at by probes, and not by R x R cores.

    Args:
        total: R.
        out_features: D.
        in_features: K.
        rank: components wanted.
    """
    # A probe of as many columns as T has components is no saving.
    return total > _core_limit(out_features, in_features) and total > 4 * rank + 32


def _core_limit(out_features: int, in_features: int) -> int:
    return max(min(out_features, in_features) // 4, _SMALL)


def _chosen(product: BlockProduct, rank: int) -> ProductSVD:
    if is_estimated(product.rank, *product.shape, rank=rank):
        return randomised_svd(product, rank=rank)
    if product.rank <= rank or product.rank > _core_limit(*product.shape):
        return _qr(product, rank)
    svd = gram_core_svd(product, rank=rank)
    if svd.tail_norm(rank) <= GRAM_TAIL * svd.terms_norm:
        return _qr(product, rank)
    return svd


def _qr(product: BlockProduct, rank: int) -> ProductSVD:
    b_DR, a_RK = product.stacked()
    return qr_core_svd([b_DR], [a_RK], rank=rank)
