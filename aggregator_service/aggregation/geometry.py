"""Lengths of whole adapters and the angles between them, from their factors.

A weighting rule may ask how the updates of a cohort lie to each other. An adapter is then one
long vector, the products B_u A_u of all its modules, and an inner product of two is a sum over
modules:

    products     <B_u A_u, B_v A_v> = sum_ab (B_u^T B_v)[a,b] (A_u A_v^T)[a,b]
    increments   the same for X_u = B_u A_u - B0_u A0_u = (B_u - B0_u) A_u + B0_u (A_u - A0_u)
    start        <B_u A_u, B0_u A0_u> and |B0_u A0_u|

with (A0_u, B0_u) what client u was given. X_u is written as the product
[B_u - B0_u, B0_u] [A_u; A_u - A0_u]: differences of nearby floats are exact, and after a short
local training |B_u A_u|^2 - 2 <..> + |B0_u A0_u|^2 would have no digit below 1e-7 of the adapter.
The exception is a client that hands back about the same product in another basis: its two halves
are large and cancel, so the length of its increment is known only to 1e-8 of the adapter's.

Cost    5 R^2 (D + K) flops per module, R = sum of ranks; one module is held at a time.

Shape suffixes: U clients, R sum of the blocks' ranks, K in_features, D out_features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate, pairwise, starmap

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import CohortGeometry
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import gram_matrix, product_inner, product_norm

__all__ = ["cohort_geometry", "increment"]


def cohort_geometry(
    modules: Iterable[tuple[Sequence[LoraFactors], Sequence[LoraFactors] | None]],
) -> CohortGeometry:
    """The geometry of a cohort.

    Args:
        modules: at least one; of each, what every client sent and what it was given, in one
            order of clients; None where it is unknown what they were given.
    """
    whole = reduce(_sum, starmap(_module_geometry, modules))
    return replace(whole, start_norms_U=whole.start_norms_U.sqrt())


def increment(member: LoraFactors, sent: LoraFactors) -> LoraFactors:
    """B A - B0 A0 as one product of twice the rank, in float64, with nothing large subtracted."""
    rank = max(member.rank, sent.rank)
    new, old = (f.to(torch.float64).padded(rank) for f in (member, sent))
    return LoraFactors(
        torch.cat([new.a_RK, new.a_RK - old.a_RK]),
        torch.cat([new.b_DR - old.b_DR, old.b_DR], dim=1),
    )


def _module_geometry(
    members: Sequence[LoraFactors], sent: Sequence[LoraFactors] | None
) -> CohortGeometry:
    """One module's share; `start_norms_U` holds squares, which can be added up."""
    products_UU = _inner_products(members)
    if sent is None:
        zeros_U = torch.zeros(len(members), dtype=torch.float64)
        return CohortGeometry(
            products_UU=products_UU,
            increments_UU=products_UU,
            start_U=zeros_U,
            start_norms_U=zeros_U,
        )
    pairs = list(zip(members, sent, strict=True))
    start = [product_inner(f.b_DR, f.a_RK, g.b_DR, g.a_RK) for f, g in pairs]
    squares = [product_norm(g.b_DR, g.a_RK) ** 2 for g in sent]
    return CohortGeometry(
        products_UU=products_UU,
        increments_UU=_inner_products([increment(f, g) for f, g in pairs]),
        start_U=torch.tensor(start, dtype=torch.float64),
        start_norms_U=torch.tensor(squares, dtype=torch.float64),
    )


def _inner_products(factors: Sequence[LoraFactors]) -> Tensor:
    """<B_u A_u, B_v A_v>, float64 on the CPU, exactly symmetric."""
    left_RR = gram_matrix([f.b_DR for f in factors])
    right_RR = gram_matrix([f.a_RK.T for f in factors])
    both_RR = (left_RR * right_RR).to("cpu")
    edges = list(pairwise(accumulate((f.rank for f in factors), initial=0)))
    sums_UR = torch.stack([both_RR[begin:end].sum(dim=0) for begin, end in edges])
    sums_UU = torch.stack([sums_UR[:, begin:end].sum(dim=1) for begin, end in edges], dim=1)
    return (sums_UU + sums_UU.T) / 2


def _sum(one: CohortGeometry, other: CohortGeometry) -> CohortGeometry:
    return CohortGeometry(
        products_UU=one.products_UU + other.products_UU,
        increments_UU=one.increments_UU + other.increments_UU,
        start_U=one.start_U + other.start_U,
        start_norms_U=one.start_norms_U + other.start_norms_U,
    )
