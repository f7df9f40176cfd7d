"""Methods on one module, as tests call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aggregator_service.aggregation.base import Method, ModuleResult, Publication
from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.composition import Recipe, compose
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.registry import METHODS, create_recipe
from aggregator_service.aggregation.scalar_als import ScalarProblem
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.runs.method import MethodSpec
from fedlora.runs.plan import Selection, plan_for


def whole_adapter_methods() -> list[str]:
    """The methods whose workers train and send all of an adapter, every round."""
    return sorted(
        name
        for name, method in METHODS.items()
        if all(
            {Part.A, Part.B} <= {*plan.trained} and plan.selection is Selection.ALL
            for plan in method.plans
        )
    )


def admissible(
    method: Method,
    members: Sequence[LoraFactors],
    *,
    round: int = 1,
    origin: LoraFactors | None = None,
    partial: bool = False,
) -> dict[str, Any]:
    """Members and context as a server has them under the method's plan.

    What the plan freezes is everybody's `origin`; what is private is unknown. The start has B = 0
    where B is trained, as the first round of a run has.

    Args:
        method: whose plan it is.
        members: what the workers would have sent, had they trained everything.
        round: whose plan it is.
        origin: what the round began from; None takes the first member.
        partial: each worker leaves a component out, another one each, where the plan lets it.
    """
    plan = plan_for(method.plans, round)
    rank = max(f.rank for f in members)
    origin = origin or next(f for f in members if f.rank == rank)
    b_start = origin.b_DR if Part.B not in plan.trained else torch.zeros_like(origin.b_DR)
    core = Part.CORE in plan.trained
    completed, extras, sent = [], [], []
    for u, f in enumerate(members):
        a = f.a_RK if Part.A in plan.trained else origin.a_RK[: f.rank].to(f.dtype)
        b = f.b_DR if Part.B in plan.trained else origin.b_DR[:, : f.rank].to(f.dtype)
        given = LoraFactors(origin.a_RK[: f.rank], b_start[:, : f.rank]).to(f.dtype)
        more: dict[Part, Tensor] = {}
        if Part.B in plan.private:
            b = torch.eye(rank, f.rank, dtype=f.dtype)
        if core:
            # Any core will do: what the member's own B has on the common one.
            own = f.b_DR[: f.rank].to(torch.float64)
            more[Part.CORE] = torch.nn.functional.pad(own, (0, 0, 0, f.rank - len(own)))
            b = b @ more[Part.CORE].to(b.dtype)
        if plan.selection is not Selection.ALL:
            more[Part.SELECTED] = torch.ones(f.rank, dtype=torch.float64)
            if partial:
                left = u % f.rank
                more[Part.SELECTED][left] = 0
                zero = plan.selection is Selection.REST_ZERO
                if Part.A in plan.trained:
                    a = a.clone()
                    a[left] = 0 if zero else given.a_RK[left]
                if Part.B in plan.trained:
                    b = b.clone()
                    b[:, left] = 0 if zero else given.b_DR[:, left]
        completed.append(LoraFactors(a, b))
        extras.append(more)
        sent.append(given)
    start = LoraFactors(origin.a_RK, b_start)
    if Part.B in plan.private:
        start = LoraFactors(origin.a_RK, torch.eye(rank, dtype=origin.dtype))
        sent = [LoraFactors(g.a_RK, torch.eye(rank, g.rank, dtype=g.dtype)) for g in sent]
    return {
        "members": completed,
        "extras": extras,
        "sent": sent,
        "start": GlobalModule(
            factors=start, extras={Part.CORE: torch.eye(rank).double()} if core else {}
        ),
        "round": round,
    }


def recipe(name: str, options: dict[str, Any] | None = None) -> Recipe:
    """A method by its registry name, with its own rules."""
    return create_recipe(MethodSpec(name=name, options=options or {}))


def change(result: ModuleResult, start: GlobalModule | None = None) -> Tensor:
    """What a result makes of the model, dense: what it adds to the base, and its adapter."""
    total = result.factors.delta_weight().double()
    if result.base is not None:
        total = total + result.base.delta_weight().double()
    if start is not None and start.base is not None:
        total = total - start.base.delta_weight().double()
    return total


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


def scalar_problem(
    cohort: Sequence[LoraFactors], weights_U: Tensor, *, ridge: float = 1e-8
) -> ScalarProblem:
    """The scalar member's problem for a cohort whose weights sum to 1."""
    origin = cohort[0].padded(max(f.rank for f in cohort))
    left, right = ClientGrams.near(cohort, origin).centred(weights_U)
    return ScalarProblem(left, right, weights_U, ridge=ridge)
