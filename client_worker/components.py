"""Which components of an update a worker sends, where a plan lets it choose.

    component j of a module   b_j a_j, a column of B times a row of A
    importance                |b_j a_j - b0_j a0_j|_F, with (A0, B0) what an absent component counts
                              as: what the worker was given, or zero

All components of all modules compete for the plan's `upload_budget`, a share of their number; one
at least is sent. What the papers of LoRA-A2 and AFLoRA rank by is not known to us, nor is theirs a
choice over all modules (docs/algorithms.md); this one is the share of the product that is lost if
the component is left out, which is the same for every way of scaling b_j up and a_j down.

Shape suffixes: R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlora.adapters.names import Part, parse_key, part_key
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.plan import RoundPlan, Selection

__all__ = ["chosen_components"]

_EVERYTHING = 1.0


def chosen_components(
    update: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    plan: RoundPlan,
    shape: AdapterShape,
) -> dict[str, Tensor]:
    """What is sent of an update: chosen rows of A, columns of B, and a mask of each module.

    Args:
        update: all that the plan's parts come to, and the modules trained in full.
        trained: the worker's whole adapter.
        given: the version that it began from.
        plan: says what an absent component counts as, and how many may be sent.
        shape: of the adapter.
    """
    kept_zero = plan.selection is Selection.REST_ZERO
    hira = shape.kind is AdapterKind.HIRA
    paths = [module.path for module in shape.layout.modules]
    keys = {p: [part_key(p, part, hira=hira) for part in (Part.A, Part.B)] for p in paths}
    scores = torch.stack(
        [
            _distances(
                *(trained[key].double() for key in keys[path]),
                *(given[key].double() * (not kept_zero) for key in keys[path]),
            )
            for path in paths
        ]
    )
    budget = plan.settings.get("upload_budget", _EVERYTHING)
    # 0.29 * 100 is a little less than 29.
    count = max(1, int(round(budget * scores.numel(), 6)))
    best = scores.flatten().sort(descending=True, stable=True).indices[:count]
    masks = torch.zeros(scores.numel()).index_fill(0, best, 1.0).view_as(scores)
    sent = {name: tensor for name, tensor in update.items() if _axis(name) is None}
    for path, mask_R in zip(paths, masks, strict=True):
        chosen = mask_R.nonzero().flatten()
        sent[part_key(path, Part.SELECTED)] = mask_R.to(shape.dtype.torch_dtype)
        for key in keys[path]:
            axis = _axis(key)
            if key in update and axis is not None and len(chosen):
                sent[key] = update[key].index_select(axis, chosen).contiguous()
    return sent


def _distances(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """|b_j a_j - b0_j a0_j|, R, as |(b_j - b0_j) a_j + b0_j (a_j - a0_j)|: small ones are exact."""
    db, da = b - b0, a - a0
    squares_R = (
        db.square().sum(0) * a.square().sum(1)
        + 2 * (db * b0).sum(0) * (a * da).sum(1)
        + b0.square().sum(0) * da.square().sum(1)
    )
    return squares_R.clamp(min=0).sqrt()


def _axis(key: str) -> int | None:
    """Where the components stand in a tensor; None if it has none."""
    part = parse_key(key).part
    return {Part.A: 0, Part.B: 1}.get(part) if part else None
