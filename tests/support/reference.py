"""Slow, dense float64 oracles: the definitions, with d x k matrices and no cleverness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors

EPS = torch.finfo(torch.float64).eps


def normalised(weights_U: Tensor) -> Tensor:
    return weights_U / weights_U.sum()


def ideal(cohort: Sequence[LoraFactors], weights_U: Tensor) -> Tensor:
    """T = sum_u w_u B_u A_u, dense."""
    w = normalised(weights_U)
    return sum(
        (w[u] * (f.b_DR.double() @ f.a_RK.double()) for u, f in enumerate(cohort)),
        start=torch.zeros(cohort[0].out_features, cohort[0].in_features, dtype=torch.float64),
    )


def mean_product(cohort: Sequence[LoraFactors], weights_U: Tensor) -> Tensor:
    """(sum_u w_u B_u)(sum_u w_u A_u), lower ranks padded with zeros, dense."""
    w, rank = normalised(weights_U), max(f.rank for f in cohort)
    a = torch.zeros(rank, cohort[0].in_features, dtype=torch.float64)
    b = torch.zeros(cohort[0].out_features, rank, dtype=torch.float64)
    for u, f in enumerate(cohort):
        a[: f.rank] += w[u] * f.a_RK.double()
        b[:, : f.rank] += w[u] * f.b_DR.double()
    return b @ a


def best_of_rank(matrix: Tensor, rank: int) -> Tensor:
    """Eckart and Young: the truncated dense singular value decomposition."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def tail_norm(matrix: Tensor, rank: int) -> float:
    return float(torch.linalg.vector_norm(torch.linalg.svdvals(matrix)[rank:]))


def scalar_objective(
    cohort: Sequence[LoraFactors], weights_U: Tensor, p_U: Tensor, q_U: Tensor
) -> float:
    """J(p, q) = |(sum p_u B_u)(sum q_u A_u) - T|^2, dense."""
    return float((_combined(cohort, p_U, q_U) - ideal(cohort, weights_U)).square().sum())


@dataclass
class DenseScalars:
    p_U: Tensor
    q_U: Tensor
    objectives: list[float]
    """J at the start and after every half-step"""


def dense_scalar_als(
    cohort: Sequence[LoraFactors], weights_U: Tensor, p_U: Tensor, q_U: Tensor, *, sweeps: int
) -> DenseScalars:
    """Alternating least squares on d*k-vectors with a library's least-squares solver."""
    target = ideal(cohort, weights_U).reshape(-1, 1)
    found = DenseScalars(p_U, q_U, [scalar_objective(cohort, weights_U, p_U, q_U)])
    for _ in range(sweeps):
        a = sum(q * f.a_RK for q, f in zip(found.q_U, cohort, strict=True))
        columns = torch.stack([(f.b_DR @ a).reshape(-1) for f in cohort], dim=1)
        found.p_U = torch.linalg.lstsq(columns, target, driver="gelsd").solution.squeeze(1)
        found.objectives.append(scalar_objective(cohort, weights_U, found.p_U, found.q_U))
        b = sum(p * f.b_DR for p, f in zip(found.p_U, cohort, strict=True))
        columns = torch.stack([(b @ f.a_RK).reshape(-1) for f in cohort], dim=1)
        found.q_U = torch.linalg.lstsq(columns, target, driver="gelsd").solution.squeeze(1)
        found.objectives.append(scalar_objective(cohort, weights_U, found.p_U, found.q_U))
    return found


def relative_error(product: Tensor, target: Tensor) -> float:
    return float((product.double() - target).norm() / target.norm())


def _combined(cohort: Sequence[LoraFactors], p_U: Tensor, q_U: Tensor) -> Tensor:
    b = sum(p * f.b_DR.double() for p, f in zip(p_U, cohort, strict=True))
    a = sum(q * f.a_RK.double() for q, f in zip(q_U, cohort, strict=True))
    return b @ a
