"""Low-rank linear algebra on torch tensors; no d x k matrix is ever formed here.

Everything is computed and returned in float64: the inputs are a few columns wide, so the
cast costs little, and Gram products square condition numbers.
"""

from fedlora.numerics.gram import gram_matrix
from fedlora.numerics.lowrank import ProductSVD, effective_rank, gram_core_svd, qr_core_svd
from fedlora.numerics.norms import product_inner, product_norm
from fedlora.numerics.sums import weighted_sum

__all__ = [
    "ProductSVD",
    "effective_rank",
    "gram_core_svd",
    "gram_matrix",
    "product_inner",
    "product_norm",
    "qr_core_svd",
    "weighted_sum",
]
