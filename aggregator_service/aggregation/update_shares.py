"""Updates of which more or less than their change counts.

Rule    theta_u' = theta_g + c_u (theta_u - theta_g), of every tensor of an update, in float64. An
        update with c_u = 1 stays as it is, bit for bit.

Shape suffix: U clients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors

__all__ = ["Shares", "shared_factors", "shared_tensors"]

Shares = tuple[float, ...]
"""c_u of each update"""


def shared_factors(
    members: Sequence[LoraFactors], given: Sequence[LoraFactors], shares_U: Shares
) -> list[LoraFactors]:
    """One module of every update.

    Args:
        members: as they came, of one element type.
        given: what each worker was given.
        shares_U: how much of each change counts.
    """
    a = shared_tensors([m.a_RK for m in members], [g.a_RK for g in given], shares_U)
    b = shared_tensors([m.b_DR for m in members], [g.b_DR for g in given], shares_U)
    return [LoraFactors(*pair) for pair in zip(a, b, strict=True)]


def shared_tensors(
    tensors: Sequence[Tensor], given: Sequence[Tensor], shares_U: Shares
) -> list[Tensor]:
    """One tensor of every update; arguments as for `shared_factors`."""
    return [
        _shared(tensor.to(torch.float64), start, share)
        for tensor, start, share in zip(tensors, given, shares_U, strict=True)
    ]


def _shared(tensor: Tensor, given: Tensor, share: float) -> Tensor:
    return tensor if share == 1 else given + share * (tensor - given.to(tensor))
