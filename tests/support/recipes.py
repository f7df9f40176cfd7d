"""Methods on one module, as tests call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aggregator_service.aggregation.base import Method, ModuleCohort, ModuleResult, Publication
from aggregator_service.aggregation.composition import Recipe, compose
from aggregator_service.aggregation.registry import create_recipe
from fedlora.adapters.factors import LoraFactors
from fedlora.runs.spec import MethodSpec


def recipe(name: str, options: dict[str, Any] | None = None) -> Recipe:
    """A method by its registry name, with its own rules."""
    return create_recipe(MethodSpec(name=name, options=options or {}))


def combine(
    method: Method | Recipe,
    members: Sequence[LoraFactors],
    weights_U: Tensor,
    *,
    rank: int | None = None,
    seed: int = 0,
    publication: Publication | None = None,
    **context: Any,
) -> ModuleResult:
    """One module of the next adapter; `context` is what else `ModuleCohort.of` takes."""
    whole = method if isinstance(method, Recipe) else compose(method)
    return whole.aggregate_module(
        ModuleCohort.of(members, weights_U, **context),
        rank=max(f.rank for f in members) if rank is None else rank,
        generator=torch.Generator().manual_seed(seed),
        publication=publication,
    )
