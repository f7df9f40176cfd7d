"""FLoRA-NA's problem, solved: one scalar per client and factor, by alternating least squares.

    minimise  J(p, q) = |B A - T|^2,   B = sum_u p_u B_u,  A = sum_u q_u A_u,  T = sum_u w_u B_u A_u

For fixed q this is a linear least-squares problem in p with U unknowns, and the reverse. Its
normal equations need only the Gram matrices of the factors: with M[u,w] = <B_u A, B_w A> and
the residual's inner products g[u] = <T - B A, B_u A>, the half-step is p <- p + M^-1 g. Each
inner product of products is a trace, <X Y, V W> = sum_ab (X^T V)[a,b] (Y W^T)[a,b], so a
half-step costs O(R^2) + O(U^3) and neither D nor K appears.

Coordinates. Raw coordinates are nearly collinear for clients that have drifted little, and J is
then a difference of large numbers. Here the blocks are X_0 = B~ (the factor mean) and
X_u = B_u - B~, Y likewise for A (`coefficients`), so that

    T - B A = sum_u w_u X_u Y_u - B (A - A~) - (B - B~) A~

is evaluated term by term without cancellation: J is accurate relative to the factor mean's own
error rather than to |T|^2.

Ridge. The system is regularised by `ridge` times its own diagonal, towards the CURRENT iterate
(a proximal step, scale free). Pulling towards 0 would drag clients of small drift towards equal
coefficients instead of their weights, and would let J rise; this way J never increases, and a
point where the iteration rests is stationary for J itself.

Starts. Only the half-steps are optimal: J is not jointly convex, and a limit on the sweeps is
not convergence. So several starts are part of the method; they run side by side as a batch.

Shape suffixes: S starts, U clients, N = U + 1 blocks, R components of each block, P = R^2 pairs
of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator_service.aggregation.coefficients import (
    balanced,
    positive,
    proximal_step,
    to_blocks,
    to_clients,
)

__all__ = ["ScalarProblem", "ScalarSolution"]

_ROUNDING = 16 * torch.finfo(torch.float64).eps
"""of J, relative to the square of the size of its terms"""


@dataclass(frozen=True, slots=True, eq=False)
class ScalarSolution:
    """Coefficients of the surrogate (sum_u p_u B_u, sum_u q_u A_u)."""

    p_U: Tensor
    q_U: Tensor
    objective: float
    """J, squared Frobenius norm"""
    sweeps: int
    """pairs of half-steps taken"""


class _Gram:
    """Gram matrix of one factor's blocks, laid out for the contractions of a half-step."""

    def __init__(self, gram: Tensor, n: int, r: int) -> None:
        blocks_NNRR = gram.reshape(n, r, n, r).transpose(1, 2)
        self.pairs = blocks_NNRR.reshape(n * n, r * r)
        self.rows = self.pairs.view(n, n * r * r)
        norms_N = gram.diagonal().clamp(min=0).reshape(n, r).sum(dim=1).sqrt()
        # Blocks are sums of others (`client_grams`): each has the rounding of the largest.
        self.norms_N = torch.cat([norms_N.max()[None], norms_N[1:].max().expand(n - 1)])

    def hat(self, x_SN: Tensor) -> Tensor:
        """(sum_i x_i X_i)^T X_k for every k, its entries in a row: S x N x R^2."""
        return (x_SN @ self.rows).view(len(x_SN), x_SN.shape[1], -1)


def _contract(hat_SNP: Tensor, y_SN: Tensor) -> Tensor:
    """sum_k y_k hat[:, k]: S x 1 x R^2."""
    return y_SN[:, None] @ hat_SNP


def _trace(matrix_SP: Tensor) -> Tensor:
    """Of matrices whose entries are in a row."""
    r = math.isqrt(matrix_SP.shape[1])
    return matrix_SP[:, :: r + 1].sum(dim=1)


class ScalarProblem:
    """J(p, q) of one module, reduced to two Gram matrices on the CPU.

    Args:
        left: Gram matrix of the blocks B~, B_1 - B~, .., B_U - B~.
        right: of the same of A, by its rows.
        weights_U: w_u.
        ridge: weight of the proximal term, relative to the system's diagonal.
    """

    def __init__(self, left: Tensor, right: Tensor, weights_U: Tensor, *, ridge: float) -> None:
        left, right = left.cpu(), right.cpu()
        n = len(weights_U) + 1
        r = len(left) // n
        self._b, self._a = _Gram(left, n, r), _Gram(right, n, r)
        self._weights_U = weights_U
        self._loss_N = torch.cat([torch.zeros(1, dtype=torch.float64), weights_U])
        self._mean_N = torch.eye(n, dtype=torch.float64)[0]
        self._ridge = ridge
        weights_NN = torch.outer(self._loss_N, self._loss_N).reshape(-1, 1)
        lost = float((weights_NN * self._b.pairs * self._a.pairs).sum())
        self.objective_at_mean = max(0.0, lost)
        """J(w, w), the squared error of factor averaging"""
        sizes = [gram.diagonal()[:r].clamp(min=0).sqrt() for gram in (left, right)]
        self.size_of_mean = float((sizes[0] * sizes[1]).sum())
        """sum over the components of |b| |a| of the factor mean"""

    # --- starts --------------------------------------------------------------------------

    def starts(self, random_starts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(p, q) of the factor mean, of the best single client, and of seeded random pairs.

        The best multiple of one client is p = e_u, q = c e_u with c = <T, B_u A_u> / |B_u A_u|^2
        and u the client whose multiple is nearest to T.

        Returns:
            Two S x U tensors, S = 2 + random_starts.
        """
        count = len(self._weights_U)
        unit_UU = torch.eye(count, dtype=torch.float64)
        pick_UN = to_blocks(unit_UU)
        left, right = self._b.hat(pick_UN), self._a.hat(pick_UN)
        ideal_N = self._loss_N + self._mean_N
        with_ideal_U = (left * right).sum(dim=2) @ ideal_N
        squares_U = (_contract(left, pick_UN) * _contract(right, pick_UN)).sum(dim=(1, 2))
        gains_U = torch.where(squares_U > 0, with_ideal_U.square() / squares_U, 0.0)
        best = int(gains_U.argmax())
        factor = with_ideal_U[best] / squares_U[best] if gains_U[best] > 0 else 1.0
        drawn = torch.randn(2, random_starts, count, generator=generator, dtype=torch.float64)
        w, e = self._weights_U[None], unit_UU[best][None]
        return torch.cat([w, e, drawn[0]]), torch.cat([w, e * factor, drawn[1]])

    # --- iteration -----------------------------------------------------------------------

    def solve(
        self, starts: tuple[Tensor, Tensor], *, max_sweeps: int, tolerance: float
    ) -> list[ScalarSolution]:
        """Alternates from every start until a sweep lowers J by less than `tolerance` of it."""
        x_SN, y_SN = (to_blocks(c, self._weights_U) for c in starts)
        objective_S = self.objective(x_SN, y_SN)
        sweeps_S = torch.zeros(len(x_SN), dtype=torch.int64)
        # Below this, J is rounding noise of its own terms.
        floor = self.objective_at_mean * torch.finfo(torch.float64).eps
        active_S = objective_S > floor
        for _ in range(max_sweeps):
            if not bool(active_S.any()):
                break
            x_new = x_SN + self._step(self._b, self._a, x_SN, y_SN)
            # B A - T = (B - B~) A + B~ (A - A~) - .. = B (A - A~) + (B - B~) A~ - ..: the
            # right half-step is the left one of the transposed problem.
            y_new = y_SN + self._step(self._a, self._b, y_SN, x_new)
            x_new, y_new = balanced(x_new, y_new, self._weights_U)
            reached_S = self.objective(x_new, y_new)
            x_SN = torch.where(active_S[:, None], x_new, x_SN)
            y_SN = torch.where(active_S[:, None], y_new, y_SN)
            sweeps_S += active_S
            enough_S = (objective_S - reached_S > tolerance * objective_S) & (reached_S > floor)
            objective_S = torch.where(active_S, reached_S, objective_S)
            active_S &= enough_S
        p_SU, q_SU = positive(to_clients(x_SN, self._weights_U), to_clients(y_SN, self._weights_U))
        return [
            ScalarSolution(p, q, float(objective), int(sweeps))
            for p, q, objective, sweeps in zip(p_SU, q_SU, objective_S, sweeps_S, strict=True)
        ]

    def excess(self, found: Sequence[ScalarSolution]) -> Tensor:
        """J of each solution above J of the factor mean, right also where they barely differ.

        (t B, A / t) is the same product; the t that brings B nearest to B~ leaves nothing large
        in the differences from the means. Where large blocks cancel, as for a client that is far
        smaller than another one, J is rounding: what that may have taken off is added again.
        """
        x_SN = to_blocks(torch.stack([s.p_U for s in found]), self._weights_U)
        y_SN = to_blocks(torch.stack([s.q_U for s in found]), self._weights_U)
        left = self._b.hat(x_SN)
        along_S, squares_S = _trace(left[:, 0]), _trace(_contract(left, x_SN)[:, 0])
        near_S = torch.where((along_S > 0) & (squares_S > 0), along_S / squares_S, 1.0)[:, None]
        x_SN, y_SN = x_SN * near_S, y_SN / near_S
        rounding_S = _ROUNDING * self._size_of_terms(x_SN, y_SN).square()
        return self._above_mean(x_SN, y_SN) + rounding_S

    def objective(self, x_SN: Tensor, y_SN: Tensor) -> Tensor:
        """J in block coordinates."""
        return (self.objective_at_mean + self._above_mean(x_SN, y_SN)).clamp(min=0)

    def _above_mean(self, x_SN: Tensor, y_SN: Tensor) -> Tensor:
        """J - J(w, w), term by term: B (A - A~) + (B - B~) A~ - sum_u w_u X_u Y_u."""
        shift_x, shift_y = x_SN - self._mean_N, y_SN - self._mean_N
        left, left_shift = self._b.hat(x_SN), self._b.hat(shift_x)
        right_shift, right_mean = self._a.hat(shift_y), self._a.hat(self._mean_N[None])
        cross_SN = (left * right_shift + left_shift * right_mean).sum(dim=2)
        squares = _contract(left, x_SN) * _contract(right_shift, shift_y)
        squares += 2 * _contract(left, shift_x) * right_shift[:, :1]
        squares += _contract(left_shift, shift_x) * right_mean[:, :1]
        return squares.sum(dim=(1, 2)) - 2 * (cross_SN @ self._loss_N)

    def _size_of_terms(self, x_SN: Tensor, y_SN: Tensor) -> Tensor:
        """What |B A - T| could be at most, if no two of its terms cancelled."""
        shift_x, shift_y = (x_SN - self._mean_N).abs(), (y_SN - self._mean_N).abs()
        b_N, a_N = self._b.norms_N, self._a.norms_N
        near_S = (x_SN.abs() @ b_N) * (shift_y @ a_N) + (shift_x @ b_N) * a_N[0]
        return near_S + (self._loss_N * b_N * a_N).sum()

    def _step(self, own: _Gram, other: _Gram, x_SN: Tensor, y_SN: Tensor) -> Tensor:
        """The proximal least-squares step of x for fixed y."""
        return proximal_step(*self._equations(own, other, x_SN, y_SN), self._ridge)

    def _equations(
        self, own: _Gram, other: _Gram, x_SN: Tensor, y_SN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """M, S x N x N, and g, S x N."""
        n = len(self._mean_N)
        hat = other.hat(y_SN)
        shift_x, shift_y = x_SN - self._mean_N, y_SN - self._mean_N
        # <T - B A, X_k ..> by its terms: sum_u w_u X_u Y_u, B (A - A~) and (B - B~) A~.
        residual = hat * self._loss_N[:, None]
        residual = residual.baddbmm_(x_SN[:, :, None], _contract(hat, shift_y), alpha=-1)
        residual = residual.baddbmm_(shift_x[:, :, None], hat[:, :1], alpha=-1)
        gradient_SN = residual.flatten(1) @ own.rows.T
        system_SNN = (_contract(hat, y_SN)[:, 0] @ own.pairs.T).view(-1, n, n)
        return system_SNN, gradient_SN
