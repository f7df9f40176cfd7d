"""A square matrix between the factors of a layer: y = W0 x + s B R A x.

Source  Fed-SB (Singhal et al. 2025, arXiv:2502.15436) trains R and nothing else. Where A and B come
        from decides all that it can learn: here, as in LoRA-XS (Balazy et al. 2024,
        arXiv:2405.17604), from the frozen weight, W0 ~ U S V^T: A = V^T, B = U S, R = 0. Fed-SB
        takes the singular vectors of a first full gradient step instead, which needs the dense
        gradient of every layer.

With R = 0 the model begins as the base model, and R has a gradient, since A and B are not zero.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedlora.runs.seeds import derive_seed

__all__ = ["Core", "principal_factors"]

_OVERSAMPLING = 8
_POWER_STEPS = 4
"""enough for singular vectors whose values fall as slowly as those of trained weights"""


class Core:
    """The core of one adapted layer; zero at first.

    Args:
        after: the layer's map by A, whose output it turns.
        rank: R.
    """

    def __init__(self, after: nn.Module, rank: int) -> None:
        weight: Any = after.weight
        self.matrix = nn.Parameter(torch.zeros(rank, rank, device=weight.device))
        after.register_forward_hook(self._turn)

    def _turn(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return linear(output, self.matrix)


def principal_factors(
    weight_DK: Tensor, rank: int, *, seed: int, path: str
) -> tuple[Tensor, Tensor]:
    """A and B of the `rank` largest components of a frozen weight, zeros where it has fewer.

    Args:
        weight_DK: the weight.
        rank: R.
        seed: the run's.
        path: of the module, which gets random numbers of its own.
    """
    most = min(weight_DK.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "core", path))
        u_DQ, s_Q, v_KQ = torch.svd_lowrank(
            weight_DK.detach().float().cpu(), q=min(rank + _OVERSAMPLING, most), niter=_POWER_STEPS
        )
    kept = min(rank, most)
    a_RK = torch.zeros(rank, weight_DK.shape[1])
    b_DR = torch.zeros(weight_DK.shape[0], rank)
    a_RK[:kept], b_DR[:, :kept] = v_KQ.T[:kept], (u_DQ * s_Q)[:, :kept]
    return a_RK, b_DR
