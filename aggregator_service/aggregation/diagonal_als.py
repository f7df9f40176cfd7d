"""One number per client, component and factor: the diagonal member of FLoRA-NA's family.

    minimise  J(p, q) = |B A - T|^2,   B = sum_u B_u diag(p_u),  A = sum_u diag(q_u) A_u

Where scalars undo that whole clients differ in scale, diagonals undo that single components do,
as after Adam, which moves every entry alike whatever its size. The half-steps are those of
`scalar_als` with U R unknowns instead of U, in the same coordinates and without cancellation:

    M[(i,a),(j,b)] = (X_i^T X_j)[a,b] (A A^T)[a,b],    g[(i,a)] = X_i[:,a]^T (T - B A) A[a,:]^T

Contracted over components they are the scalar half-steps. Started from the scalar solution J can
only fall, so the diagonal member is never worse than the scalar one, before rounding. Only the
half-steps are optimal: the end is a stationary point.

Cost    R_s^2 (D + K) flops for the Gram matrices, then R_s^3 / 3 per half-step, R_s = (U + 1) R.

Shape suffixes: U clients, N = U + 1 blocks, R components of each block.
"""

from __future__ import annotations

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
from fedlora.numerics import gram_matrix

__all__ = ["DiagonalProblem", "DiagonalSolution"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalSolution:
    """Coefficients of the surrogate (sum_u B_u diag(p_u), sum_u diag(q_u) A_u)."""

    p_RU: Tensor
    q_RU: Tensor
    objective: float
    """J, squared Frobenius norm"""
    sweeps: int
    """pairs of half-steps taken"""


class _Gram:
    """Gram matrix of one factor's blocks."""

    def __init__(self, gram: Tensor, n: int, r: int) -> None:
        self.blocks_RNRN = gram.reshape(n, r, n, r).permute(1, 0, 3, 2).contiguous()

    def hat(self, x_RN: Tensor) -> Tensor:
        """(sum_i X_i diag(x_i))^T X_k for every k, as [a, c, k]: R x R x N."""
        return torch.einsum("ai,aick->ack", x_RN, self.blocks_RNRN)


def _contract(hat_RRN: Tensor, y_RN: Tensor) -> Tensor:
    """sum_k hat[:, :, k] diag(y_k): R x R."""
    return (hat_RRN * y_RN).sum(dim=2)


class DiagonalProblem:
    """J(p, q) of one module, reduced to two Gram matrices on the CPU.

    Args:
        centred: the cohort.
        ridge: weight of the proximal term, relative to the system's diagonal.
    """

    def __init__(self, centred: CentredCohort, *, ridge: float) -> None:
        blocks = [centred.mean, *centred.deviations]
        n, r = len(blocks), centred.rank
        self._b = _Gram(gram_matrix([f.b_DR for f in blocks]).cpu(), n, r)
        self._a = _Gram(gram_matrix([f.a_RK.T for f in blocks]).cpu(), n, r)
        self._weights_U = centred.weights_U
        self._loss_N = torch.cat([torch.zeros(1, dtype=torch.float64), centred.weights_U])
        self._mean_N = torch.eye(n, dtype=torch.float64)[0]
        self._ridge = ridge
        weights_NN = torch.outer(self._loss_N, self._loss_N)
        products = (self._b.blocks_RNRN * self._a.blocks_RNRN).sum(dim=(0, 2))
        self._objective_at_mean = max(0.0, float((weights_NN * products).sum()))

    def solve(
        self, p_RU: Tensor, q_RU: Tensor, *, max_sweeps: int, tolerance: float
    ) -> DiagonalSolution:
        """Alternates until a sweep lowers J by less than `tolerance` of it."""
        x_RN, y_RN = (to_blocks(c, self._weights_U) for c in (p_RU, q_RU))
        objective = self.objective(x_RN, y_RN)
        # Below this, J is rounding noise of its own terms.
        floor = self._objective_at_mean * _EPS
        sweeps = 0
        while sweeps < max_sweeps and objective > floor:
            x_new = x_RN + self._step(self._b, self._a, x_RN, y_RN)
            y_new = y_RN + self._step(self._a, self._b, y_RN, x_new)
            x_new, y_new = balanced(x_new, y_new, self._weights_U)
            reached = self.objective(x_new, y_new)
            if reached > objective:
                break
            sweeps += 1
            enough = objective - reached > tolerance * objective
            x_RN, y_RN, objective = x_new, y_new, reached
            if not enough:
                break
        p_RU, q_RU = positive(to_clients(x_RN, self._weights_U), to_clients(y_RN, self._weights_U))
        return DiagonalSolution(p_RU, q_RU, objective, sweeps)

    def objective(self, x_RN: Tensor, y_RN: Tensor) -> float:
        """J in block coordinates, term by term: B (A - A~) + (B - B~) A~ - sum_u w_u X_u Y_u."""
        shift_x, shift_y = x_RN - self._mean_N, y_RN - self._mean_N
        left, left_shift = self._b.hat(x_RN), self._b.hat(shift_x)
        right_shift = self._a.hat(shift_y)
        right_mean = self._a.hat(self._mean_N.expand_as(y_RN))
        cross_N = (left * right_shift + left_shift * right_mean).sum(dim=(0, 1))
        squares = _contract(left, x_RN) * _contract(right_shift, shift_y)
        squares += 2 * _contract(left, shift_x) * right_shift[:, :, 0]
        squares += _contract(left_shift, shift_x) * right_mean[:, :, 0]
        total = self._objective_at_mean - 2 * float(cross_N @ self._loss_N) + float(squares.sum())
        return max(0.0, total)

    def _step(self, own: _Gram, other: _Gram, x_RN: Tensor, y_RN: Tensor) -> Tensor:
        """The proximal least-squares step of x for fixed y."""
        system, gradient = self._equations(own, other, x_RN, y_RN)
        return proximal_step(system[None], gradient[None], self._ridge).reshape_as(x_RN)

    def _equations(
        self, own: _Gram, other: _Gram, x_RN: Tensor, y_RN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """M, R N x R N, and g, R N, component by component."""
        hat = other.hat(y_RN)
        excess_RR = _contract(hat, y_RN - self._mean_N)
        residual_RRN = (
            hat * self._loss_N
            - excess_RR[:, :, None] * x_RN
            - hat[:, :, :1] * (x_RN - self._mean_N)
        )
        gradient_RN = torch.einsum("aick,ack->ai", own.blocks_RNRN, residual_RRN)
        span_RR = _contract(hat, y_RN)
        size = x_RN.numel()
        system = (own.blocks_RNRN * span_RR[:, None, :, None]).reshape(size, size)
        return system, gradient_RN.flatten()
