"""Rounds of one module as a run plays them, beside dense weights that are simply added up."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from support.builders import normal
from support.recipes import combine
from support.reference import ideal
from torch import Tensor

from aggregator_service.aggregation.base import Method, ModuleResult, Publication
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part

F32 = Publication(dtype=torch.float32)
F64 = Publication(dtype=torch.float64)


def product(factors: LoraFactors | None, like: Tensor) -> Tensor:
    """B A, dense; zeros for nothing."""
    return torch.zeros_like(like) if factors is None else factors.delta_weight().double()


def effective(module: GlobalModule | ModuleResult, like: Tensor) -> Tensor:
    """What is added to W0 in all: base + B A, dense."""
    return product(module.base, like) + product(module.factors, like)


def published(result: ModuleResult, publication: Publication) -> GlobalModule:
    """The result as a reader of its file has it, rounding included."""
    base = result.base
    if base is not None:
        base = base.to(publication.dtype).to(torch.float64)
    return GlobalModule(factors=publication.read_back(result.factors), base=base)


def trained(
    start: LoraFactors,
    count: int,
    *,
    seed: int,
    parts: Collection[Part] = (Part.A, Part.B),
    drift: float = 0.3,
) -> list[LoraFactors]:
    """Workers that moved some parts of what they were given."""
    members = []
    for u in range(count):
        a, b = start.a_RK, start.b_DR
        if Part.A in parts:
            a = a + drift * normal(7000 + 100 * seed + 2 * u, *a.shape)
        if Part.B in parts:
            b = b + drift * normal(7001 + 100 * seed + 2 * u, *b.shape)
        members.append(LoraFactors(a, b))
    return members


def play(
    method: Method | Recipe,
    first: GlobalModule,
    weights_U: Tensor,
    *,
    rounds: int,
    rank: int,
    parts: Collection[Part] = (Part.A, Part.B),
    publication: Publication = F32,
    ranks: Sequence[int] | None = None,
) -> tuple[list[GlobalModule], list[Tensor]]:
    """The versions published after each round, and what W0 should have gained by then.

    The wanted gain is T plus whatever lay in the base model when the round began.
    """
    version, versions, wanted = first, [], []
    for t in range(1, rounds + 1):
        members = trained(version.factors, len(weights_U), seed=t, parts=parts)
        if ranks is not None:
            members = [
                LoraFactors(f.a_RK[:r], f.b_DR[:, :r]) for f, r in zip(members, ranks, strict=True)
            ]
        target = ideal(members, weights_U)
        wanted.append(product(version.base, target) + target)
        result = combine(
            method,
            members,
            weights_U,
            rank=rank,
            seed=t,
            publication=publication,
            start=version,
            round=t,
        )
        version = published(result, publication)
        versions.append(version)
    return versions, wanted
