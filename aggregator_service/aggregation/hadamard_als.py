"""FLoRA-NA's problem for HiRA: scalars, in the norm that HiRA's product has in the model.

    minimise  J(p, q) = |W0 o (B A - T)|^2,   B = sum_u p_u B_u,  A = sum_u q_u A_u

HiRA's weight is W0 + W0 o (B A), o the elementwise product, so an error counts as much as the
entry of W0 that it stands beside. The half-steps are those of `scalar_als` in the same
coordinates; but an elementwise product has no Gram shortcut, and the inner products

    M[i,j] = <W0 o X_i A, W0 o X_j A>,    g[i] = <W0 o X_i A, W0 o (T - B A)>

are sums over all D K entries. They are added up over blocks of rows: no D x K matrix is ever
held, W0 included. T - B A is formed from small terms, as in `centred`, so J has full relative
accuracy.

Cost    O(U D K (r + U)) flops and one reading of W0 per half-step. J at a point is a by-product of
the half-step that leaves it.

Shape suffixes: U clients, N = U + 1 blocks, M rows of a block, K in_features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.coefficients import (
    balanced,
    positive,
    proximal_step,
    to_blocks,
    to_clients,
)
from aggregator_service.aggregation.module_cohort import BaseRows
from aggregator_service.aggregation.scalar_als import ScalarSolution
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import weighted_sum

__all__ = ["HadamardProblem"]

_BLOCK_NUMBERS = 2**22
"""entries held at a time, over all clients: 32 MiB in float64"""


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """A surrogate, and how far its factors are from the means."""

    factors: LoraFactors
    shift: LoraFactors
    """A - A~ and B - B~"""


class HadamardProblem:
    """J(p, q) of one module in the norm weighted with W0.

    Args:
        centred: the cohort.
        base_rows: W0 by rows.
        ridge: weight of the proximal term, relative to the system's diagonal.
    """

    def __init__(self, centred: CentredCohort, base_rows: BaseRows, *, ridge: float) -> None:
        self._weights_U = centred.weights_U
        self._mean = centred.mean
        self._blocks = [centred.mean, *centred.deviations]
        self._lost = centred.covariance
        self._base_rows = base_rows
        self._ridge = ridge
        self._mean_N = torch.eye(len(self._blocks), dtype=torch.float64)[0]

    def solve(
        self, p_U: Tensor, q_U: Tensor, *, max_sweeps: int, tolerance: float
    ) -> ScalarSolution:
        """Alternates until a sweep lowers J by less than `tolerance` of it."""
        x_N, y_N = to_blocks(p_U, self._weights_U), to_blocks(q_U, self._weights_U)
        objective, step_N = self._left_step(x_N, y_N)
        floor = objective * torch.finfo(torch.float64).eps
        sweeps, falls = 0, True
        while falls and sweeps < max_sweeps and objective > floor:
            x_new = x_N + step_N
            y_new = y_N + self._right_step(x_new, y_N)
            x_new, y_new = balanced(x_new, y_new, self._weights_U)
            reached, step_N = self._left_step(x_new, y_new)
            falls = objective - reached > tolerance * objective
            if reached < objective:
                x_N, y_N, objective = x_new, y_new, reached
            sweeps += 1
        p_U, q_U = positive(to_clients(x_N, self._weights_U), to_clients(y_N, self._weights_U))
        return ScalarSolution(p_U, q_U, objective, sweeps)

    def objective_of(self, factors: LoraFactors) -> float:
        """|W0 o (B A - T)|^2 for any factors of the cohort's rank."""
        wide = factors.to(torch.float64)
        mean = self._mean
        shift = LoraFactors(wide.a_RK - mean.a_RK, wide.b_DR - mean.b_DR)
        point = _Point(wide, shift)
        return math.fsum(
            float((w0_MK * self._residual(rows, point)).square().sum())
            for rows, w0_MK in self._base()
        )

    def _left_step(self, x_N: Tensor, y_N: Tensor) -> tuple[float, Tensor]:
        """J, and the proximal least-squares step of x for fixed y."""
        point = self._point(x_N, y_N)
        a_RK = point.factors.a_RK
        return self._step(point, lambda rows: [f.b_DR[rows] @ a_RK for f in self._blocks])

    def _right_step(self, x_N: Tensor, y_N: Tensor) -> Tensor:
        """The proximal least-squares step of y for fixed x."""
        point = self._point(x_N, y_N)
        b_DR = point.factors.b_DR
        return self._step(point, lambda rows: [b_DR[rows] @ f.a_RK for f in self._blocks])[1]

    def _step(
        self, point: _Point, products: Callable[[slice], list[Tensor]]
    ) -> tuple[float, Tensor]:
        n = len(self._blocks)
        system_NN = torch.zeros(n, n, dtype=torch.float64)
        gradient_N = torch.zeros(n, dtype=torch.float64)
        objective = 0.0
        for rows, w0_MK in self._base():
            basis = torch.stack([(w0_MK * x).flatten() for x in products(rows)])
            residual = (w0_MK * self._residual(rows, point)).flatten()
            system_NN += (basis @ basis.T).cpu()
            gradient_N += (basis @ residual).cpu()
            objective += float(residual.square().sum())
        return objective, proximal_step(system_NN[None], gradient_N[None], self._ridge)[0]

    def _point(self, x_N: Tensor, y_N: Tensor) -> _Point:
        return _Point(
            self._combined(x_N, y_N), self._combined(x_N - self._mean_N, y_N - self._mean_N)
        )

    def _combined(self, x_N: Tensor, y_N: Tensor) -> LoraFactors:
        return LoraFactors(
            weighted_sum([f.a_RK for f in self._blocks], y_N),
            weighted_sum([f.b_DR for f in self._blocks], x_N),
        )

    def _residual(self, rows: slice, point: _Point) -> Tensor:
        """Rows of T - B A, term by term: sum_u w_u X_u Y_u - B (A - A~) - (B - B~) A~."""
        near = point.factors.b_DR[rows] @ point.shift.a_RK
        near += point.shift.b_DR[rows] @ self._mean.a_RK
        return self._lost.b_DR[rows] @ self._lost.a_RK - near

    def _base(self) -> Iterator[tuple[slice, Tensor]]:
        """W0 from top to bottom, a block of rows at a time."""
        d, k = self._mean.out_features, self._mean.in_features
        step = max(1, _BLOCK_NUMBERS // (len(self._blocks) * k))
        for begin in range(0, d, step):
            end = min(begin + step, d)
            yield slice(begin, end), self._base_rows(begin, end).to(self._mean.a_RK)
