"""DoRA's magnitudes: one number per output row, combined beside the direction.

Paper   Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, "DoRA: Weight-Decomposed Low-Rank
        Adaptation", 2024, arXiv:2402.09353. As PEFT has it: the weight's row j is
        m_j v_j / |v_j| with v_j row j of V = W0 + base + B A, so m has one number per OUTPUT
        row, and begins as the row norms of W0.
Rule    mean            m_j = sum_u w_u m_{u,j}
        least squares   m_j = < v^_j, sum_u w_u m_{u,j} v^_{u,j} >   with unit rows v^ of the new
                        V and v^_u of client u's: the m_j for which m_j v^_j is nearest to the
                        mean of the clients' weights.
Bias    neither is exact: a mean of normalised rows is no normalised row of the mean direction.
        Least squares shortens the magnitude where the clients' directions disagree.
Needs   nothing for the mean; the frozen weight W0 for least squares.
Cost    U D for the mean; 2 D K (R + r) flops for least squares, W0 read once, by blocks of rows.

Readings. The weights' mean is the target because T, the mean of products, does not say what a
row's length should be. A row of norm 0 has no direction and takes the mean
(test_magnitudes.py holds both).

Shape suffixes: U clients, R rank, K in_features, D out_features, N rows of a block.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from aggregator_service.aggregation.module_cohort import BaseRows, ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.numerics import weighted_sum

__all__ = ["Magnitudes", "combine_magnitudes"]

_BLOCK_NUMBERS = 2**21
"""entries of a weight that are held at a time: 16 MiB in float64"""


class Magnitudes(enum.StrEnum):
    """How magnitudes are combined."""

    MEAN = "mean"
    LEAST_SQUARES = "least_squares"


def combine_magnitudes(
    cohort: ModuleCohort,
    direction: LoraFactors,
    rule: Magnitudes,
    *,
    base: LoraFactors | None = None,
) -> Tensor:
    """The magnitudes that go with a new direction W0 + base + B A, in float64.

    Args:
        cohort: members with magnitudes.
        direction: the new B A, as it will be read.
        rule: least squares falls back to the mean where the server has no frozen weight.
        base: everything added to the base model, the new round's share included. What the
            members were trained on is `cohort.start.base`.
    """
    magnitudes = [extras[Part.MAGNITUDE].to(torch.float64) for extras in cohort.extras]
    mean_D = weighted_sum(magnitudes, cohort.weights_U)
    if rule is Magnitudes.MEAN or cohort.base_rows is None:
        return mean_D
    before = cohort.start.base if cohort.start else None
    trained = [_stacked(f, before) for f in cohort.members]
    new = _stacked(direction, base)
    step = max(1, _BLOCK_NUMBERS // new.in_features)
    blocks = []
    for begin in range(0, new.out_features, step):
        rows = slice(begin, min(begin + step, new.out_features))
        w0_NK = _rows(cohort.base_rows, rows, new)
        weight_NK = torch.zeros_like(w0_NK)
        for f, m_D, w in zip(trained, magnitudes, cohort.weights_U.tolist(), strict=True):
            weight_NK += (w * m_D[rows])[:, None] * _unit(w0_NK + f.b_DR[rows] @ f.a_RK)
        unit_NK = _unit(w0_NK + new.b_DR[rows] @ new.a_RK)
        has_direction_N = unit_NK.any(dim=1)
        fitted_N = (unit_NK * weight_NK).sum(dim=1)
        blocks.append(torch.where(has_direction_N, fitted_N, mean_D[rows]))
    return torch.cat(blocks)


def _stacked(factors: LoraFactors, base: LoraFactors | None) -> LoraFactors:
    """B A + base as one product, in float64."""
    wide = factors.to(torch.float64)
    if base is None:
        return wide
    more = base.to(torch.float64)
    return LoraFactors(torch.cat([wide.a_RK, more.a_RK]), torch.cat([wide.b_DR, more.b_DR], dim=1))


def _rows(base_rows: BaseRows, rows: slice, like: LoraFactors) -> Tensor:
    return base_rows(rows.start, rows.stop).to(like.a_RK)


def _unit(v_NK: Tensor) -> Tensor:
    """Rows of norm 1; rows of zeros stay."""
    norms_N: Tensor = torch.linalg.vector_norm(v_NK, dim=1, keepdim=True)
    return v_NK / torch.where(norms_N > 0, norms_N, 1.0)
