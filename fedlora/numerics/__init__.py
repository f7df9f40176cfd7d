"""Low-rank linear algebra on torch tensors; no d x k matrix is ever formed here.

Everything is summed and returned in float64, since Gram products square condition numbers; but
for the randomised decomposition, whose products run in the blocks' own element type.
"""

from fedlora.numerics.blocks import BlockProduct
from fedlora.numerics.decomposition import (
    GRAM_TAIL,
    Core,
    decompose,
    decompose_to,
    is_estimated,
)
from fedlora.numerics.finite import is_finite
from fedlora.numerics.gram import gram_matrix, gram_of_panels
from fedlora.numerics.lowrank import (
    ProductSVD,
    effective_rank,
    gram_core_svd,
    gram_core_values,
    qr_core_svd,
    terms_norm,
)
from fedlora.numerics.norms import product_inner, product_norm
from fedlora.numerics.randomised import Projection, projection, randomised_svd
from fedlora.numerics.sums import weighted_sum

__all__ = [
    "GRAM_TAIL",
    "BlockProduct",
    "Core",
    "ProductSVD",
    "Projection",
    "decompose",
    "decompose_to",
    "effective_rank",
    "gram_core_svd",
    "gram_core_values",
    "gram_matrix",
    "gram_of_panels",
    "is_estimated",
    "is_finite",
    "product_inner",
    "product_norm",
    "projection",
    "qr_core_svd",
    "randomised_svd",
    "terms_norm",
    "weighted_sum",
]
