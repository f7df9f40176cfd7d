"""What weighting rules see, made by hand: facts of updates, and a dense geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import (
    CohortGeometry,
    UpdateFacts,
    WeightingView,
)


def unused() -> CohortGeometry:
    raise AssertionError("the rule looks at no tensor")


def facts_view(examples: Sequence[float], **metrics: Sequence[float]) -> WeightingView:
    """A cohort without tensors: examples by update, and metrics by name."""
    updates = tuple(
        UpdateFacts(
            worker=f"w{u}",
            num_examples=n,
            rank=4,
            metrics={name: values[u] for name, values in metrics.items()},
        )
        for u, n in enumerate(examples)
    )
    return WeightingView(updates=updates, geometry=unused)


def dense_geometry(products: Sequence[Tensor], given: Sequence[Tensor] | None) -> CohortGeometry:
    """From dense products and what each client was given, by the definitions."""
    flat = torch.stack([p.flatten() for p in products])
    start = torch.zeros_like(flat) if given is None else torch.stack([g.flatten() for g in given])
    steps = flat - start
    return CohortGeometry(
        products_UU=flat @ flat.T,
        increments_UU=steps @ steps.T,
        start_U=(flat * start).sum(dim=1),
        start_norms_U=start.norm(dim=1),
    )


def geometry_view(
    products: Sequence[Tensor],
    given: Sequence[Tensor] | None = None,
    *,
    examples: Sequence[float] | None = None,
    workers: Sequence[str] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> WeightingView:
    """A cohort of dense products."""
    count = len(products)
    updates = tuple(
        UpdateFacts(worker=worker, num_examples=n, rank=4)
        for worker, n in zip(
            workers or [f"w{u}" for u in range(count)], examples or [1] * count, strict=True
        )
    )
    return WeightingView(
        updates=updates, geometry=lambda: dense_geometry(products, given), state=state or {}
    )


def permuted(view: WeightingView, order: Sequence[int]) -> WeightingView:
    """The same cohort in another order."""
    index = torch.tensor(order)

    def geometry() -> CohortGeometry:
        whole = view.geometry()
        return CohortGeometry(
            products_UU=whole.products_UU[index][:, index],
            increments_UU=whole.increments_UU[index][:, index],
            start_U=whole.start_U[index],
            start_norms_U=whole.start_norms_U[index],
        )

    return WeightingView(
        updates=tuple(view.updates[u] for u in order), geometry=geometry, state=view.state
    )
