"""Coefficients of the clients' factors in a surrogate, and the coordinates they are solved in.

A surrogate is B = sum_u B_u P_u, A = sum_u Q_u A_u. Where P_u and Q_u are scalars or diagonal
matrices they are held as tensors whose LAST dimension runs over the clients: p_U, or p_RU with
one row per component.

Raw coordinates are nearly collinear for clients that have drifted little. So the problems are
solved over the blocks X_0 = B~ (the factor mean), X_u = B_u - B~, and likewise for A:

    sum_u c_u B_u = sum_i x_i X_i     with  c_u = x_u + w_u (x_0 - sum_v x_v)

x = (1, 0, .., 0) is the factor mean, c = w.

Shape suffixes: S independent problems, or components, U clients, N = U + 1 blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced", "concentration", "positive", "proximal_step", "to_blocks", "to_clients"]

_EPS = torch.finfo(torch.float64).eps


def concentration(p_U: Tensor, q_U: Tensor) -> float:
    """max_u |p_u q_u| / sum_u |p_u q_u|: 1/U where all count alike, 1 where one client is sent.

    With one number per component, a client's share is the sum over its components.
    """
    shares = (p_U * q_U).abs().reshape(-1, p_U.shape[-1]).sum(dim=0)
    total = float(shares.sum())
    return float(shares.max()) / total if total > 0 else 1.0


def to_blocks(c_SU: Tensor, weights_U: Tensor | float = 0.0) -> Tensor:
    """sum_u c_u B_u = t B~ + sum_u (c_u - t w_u) X_u with t = sum_u c_u: 1, 0, .., 0 for c = w.

    Any multiple of w may be taken off the second part, since sum_u w_u X_u = 0.
    """
    total_S1 = c_SU.sum(dim=-1, keepdim=True)
    return torch.cat([total_S1, c_SU - total_S1 * weights_U], dim=-1)


def to_clients(x_SN: Tensor, weights_U: Tensor) -> Tensor:
    """The coefficients of the clients' own factors."""
    rest_S1 = x_SN[..., :1] - x_SN[..., 1:].sum(dim=-1, keepdim=True)
    return x_SN[..., 1:] + weights_U * rest_S1


def balanced(x_SN: Tensor, y_SN: Tensor, weights_U: Tensor) -> tuple[Tensor, Tensor]:
    """The product does not see (t p, q / t): takes |p| = |q|, row by row."""
    p_S = torch.linalg.vector_norm(to_clients(x_SN, weights_U), dim=-1)
    q_S = torch.linalg.vector_norm(to_clients(y_SN, weights_U), dim=-1)
    t_S = torch.where((p_S > 0) & (q_S > 0), (q_S / p_S).sqrt(), 1.0)[..., None]
    return x_SN * t_S, y_SN / t_S


def positive(p_SU: Tensor, q_SU: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) and (-p, -q) are one product; the positive one continues the clients' basis."""
    sign_S = torch.where(p_SU.sum(dim=-1) < 0, -1.0, 1.0)[..., None]
    return p_SU * sign_S, q_SU * sign_S


def proximal_step(system_SNN: Tensor, gradient_SN: Tensor, ridge: float) -> Tensor:
    """(M + ridge diag M)^-1 g of S small least-squares problems.

    Scaled to a unit diagonal first, so that blocks of any size are treated alike. M is singular by
    construction, since sum_u w_u X_u = 0.
    """
    n = system_SNN.shape[-1]
    scale_SN = system_SNN.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    scale_SN = torch.where(scale_SN > 0, scale_SN, 1.0)
    scaled_SNN = system_SNN / (scale_SN[:, :, None] * scale_SN[:, None])
    scaled_SN = gradient_SN / scale_SN
    ridged_SNN = scaled_SNN.clone()
    # Rounding alone may leave eigenvalues of -n^2 eps in a system of unit diagonal.
    ridged_SNN.diagonal(dim1=1, dim2=2).add_(max(ridge, n * n * _EPS))
    root_SNN, failed_S = torch.linalg.cholesky_ex(ridged_SNN)
    if bool(failed_S.any()):
        # The terms of M cancel, as where one client is much larger than the others, and what is
        # left has more rounding in it than the ridge makes up for.
        return _step_by_eigenvalues(scaled_SNN, scaled_SN, ridge) / scale_SN
    return torch.cholesky_solve(scaled_SN[:, :, None], root_SNN).squeeze(2) / scale_SN


def _step_by_eigenvalues(scaled_SNN: Tensor, scaled_SN: Tensor, ridge: float) -> Tensor:
    """The same where rounding has made M indefinite: what is below 0 counts as 0."""
    values_SN, vectors_SNN = torch.linalg.eigh((scaled_SNN + scaled_SNN.mT) / 2)
    turned_SN = (scaled_SN[:, None] @ vectors_SNN).squeeze(1)
    turned_SN = turned_SN / (values_SN.clamp(min=0) + ridge)
    step_SN: Tensor = (vectors_SNN @ turned_SN[:, :, None]).squeeze(2)
    return step_SN
