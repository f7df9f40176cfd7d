"""What a first reading of the papers suggests: the same results by way of d x k matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors

__all__ = ["dense_adam", "dense_svd"]

ADAM_STEPS = 100


def dense_ideal(cohort: ModuleCohort) -> Tensor:
    members, weights = cohort.members, cohort.weights_U.tolist()
    b = torch.cat([f.b_DR * w for f, w in zip(members, weights, strict=True)], dim=1)
    return b @ torch.cat([f.a_RK for f in members])


def dense_svd(cohort: ModuleCohort, rank: int) -> LoraFactors:
    u, s, vh = torch.linalg.svd(dense_ideal(cohort), full_matrices=False)
    root = s[:rank].sqrt()
    return LoraFactors(root[:, None] * vh[:rank], u[:, :rank] * root)


def dense_adam(cohort: ModuleCohort, steps: int = ADAM_STEPS) -> LoraFactors:
    """FLoRA-NA's scalars by a first-order method on |BA - T|^2 / |T|^2."""
    target = dense_ideal(cohort)
    a_URK = torch.stack([f.a_RK for f in cohort.members])
    b_UDR = torch.stack([f.b_DR for f in cohort.members])
    start = cohort.weights_U.to(target)
    p, q = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimiser = torch.optim.Adam([p, q], lr=1e-2)
    norm, best, kept = target.square().sum(), float("inf"), (start, start)
    for _ in range(steps):
        b, a = torch.einsum("u,udr->dr", p, b_UDR), torch.einsum("u,urk->rk", q, a_URK)
        loss = (b @ a - target).square().sum() / norm
        if float(loss.detach()) < best:
            best, kept = float(loss.detach()), (p.detach().clone(), q.detach().clone())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    p, q = kept
    return LoraFactors(torch.einsum("u,urk->rk", q, a_URK), torch.einsum("u,udr->dr", p, b_UDR))
