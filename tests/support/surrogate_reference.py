"""Slow, dense float64 oracles for the family of surrogates: d x k matrices and a library's least
squares, straight from the formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from support.builders import normal
from support.reference import ideal
from torch import Tensor

from fedlora.adapters.factors import LoraFactors


def componentwise_copies(
    count: int, origin: LoraFactors, *, noise: float = 0.0
) -> list[LoraFactors]:
    """One product, factor c_a in row a of A and 1/c_a in column a of B: diagonals undo it."""
    copies = []
    for u in range(count):
        c = torch.exp(0.7 * normal(70 + u, origin.rank))
        a = c[:, None] * origin.a_RK + noise * normal(4000 + u, *origin.a_RK.shape)
        b = origin.b_DR / c + noise * normal(5000 + u, *origin.b_DR.shape)
        copies.append(LoraFactors(a, b))
    return copies


def combined(cohort: Sequence[LoraFactors], p_RU: Tensor, q_RU: Tensor) -> tuple[Tensor, Tensor]:
    """B = sum_u B_u diag(p_u) and A = sum_u diag(q_u) A_u."""
    b = sum(f.b_DR @ torch.diag(p_RU[:, u]) for u, f in enumerate(cohort))
    a = sum(torch.diag(q_RU[:, u]) @ f.a_RK for u, f in enumerate(cohort))
    return b, a


def diagonal_objective(
    cohort: Sequence[LoraFactors], w: Tensor, p_RU: Tensor, q_RU: Tensor
) -> float:
    b, a = combined(cohort, p_RU, q_RU)
    return float((b @ a - ideal(cohort, w)).square().sum())


def dense_diagonal_als(
    cohort: Sequence[LoraFactors], w: Tensor, p_RU: Tensor, q_RU: Tensor, *, sweeps: int
) -> list[float]:
    """J at the start and after every half-step."""
    target, rank = ideal(cohort, w).reshape(-1, 1), cohort[0].rank
    found = [diagonal_objective(cohort, w, p_RU, q_RU)]
    for _ in range(sweeps):
        _, a = combined(cohort, p_RU, q_RU)
        columns = [torch.outer(f.b_DR[:, i], a[i]) for i in range(rank) for f in cohort]
        p_RU = _solved(columns, target).reshape(rank, -1)
        found.append(diagonal_objective(cohort, w, p_RU, q_RU))
        b, _ = combined(cohort, p_RU, q_RU)
        columns = [torch.outer(b[:, i], f.a_RK[i]) for i in range(rank) for f in cohort]
        q_RU = _solved(columns, target).reshape(rank, -1)
        found.append(diagonal_objective(cohort, w, p_RU, q_RU))
    return found


def weighted_objective(
    cohort: Sequence[LoraFactors], w: Tensor, w0: Tensor, p_U: Tensor, q_U: Tensor
) -> float:
    """|W0 o ((sum p_u B_u)(sum q_u A_u) - T)|^2."""
    b = sum(p * f.b_DR for p, f in zip(p_U, cohort, strict=True))
    a = sum(q * f.a_RK for q, f in zip(q_U, cohort, strict=True))
    return float((w0 * (b @ a - ideal(cohort, w))).square().sum())


def dense_weighted_als(
    cohort: Sequence[LoraFactors], w: Tensor, w0: Tensor, p_U: Tensor, q_U: Tensor, *, sweeps: int
) -> list[float]:
    """J in the weighted norm at the start and after every half-step."""
    target = (w0 * ideal(cohort, w)).reshape(-1, 1)
    found = [weighted_objective(cohort, w, w0, p_U, q_U)]
    for _ in range(sweeps):
        a = sum(q * f.a_RK for q, f in zip(q_U, cohort, strict=True))
        p_U = _solved([w0 * (f.b_DR @ a) for f in cohort], target)
        found.append(weighted_objective(cohort, w, w0, p_U, q_U))
        b = sum(p * f.b_DR for p, f in zip(p_U, cohort, strict=True))
        q_U = _solved([w0 * (b @ f.a_RK) for f in cohort], target)
        found.append(weighted_objective(cohort, w, w0, p_U, q_U))
    return found


def unit_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=1, keepdim=True)


def mean_dora_weight(
    cohort: Sequence[LoraFactors], magnitudes: Sequence[Tensor], w: Tensor, base: Tensor
) -> Tensor:
    """The mean of the clients' weights m o V / |V|, dense."""
    share = w / w.sum()
    return sum(
        (
            share[u] * magnitudes[u][:, None] * unit_rows(base + f.b_DR @ f.a_RK)
            for u, f in enumerate(cohort)
        ),
        start=torch.zeros_like(base),
    )


def _solved(columns: Sequence[Tensor], target: Tensor) -> Tensor:
    matrix = torch.stack([c.reshape(-1) for c in columns], dim=1)
    return torch.linalg.lstsq(matrix, target, driver="gelsd").solution.squeeze(1)
