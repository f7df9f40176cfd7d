"""What methods have added to the base model so far, as one low-rank stack.

Rule    base_t = base_{t-1} + change_t, kept as B = [B_1 .. B_t], A = [A_1; ..; A_t] of scale 1.
        The frozen weight itself is never touched: a stack can be served, and added to a
        quantised base model, where a dense sum would be rounded to the weight's own type every
        round.
Bias    none while the stack's rank stays below the cap. Above it the stack becomes the best one of
        the cap's rank (QR core); its share of the stack that is lost is measured. A matrix has
        no more than min(D, K) components, so that cap loses nothing.
Cost    a copy, or about 4 R^2 (D + K) + 20 R^3 flops where a stack of rank R is recompressed.

Everything is float64: a stack is a sum over rounds, and is rounded once, when it is published.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from aggregator_service.aggregation.base import Properties
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import ProductSVD, qr_core_svd

__all__ = ["GrownBase", "check_max_base_rank", "grown", "trimmed", "with_changed_base"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GrownBase:
    """The stack after a round."""

    stack: LoraFactors | None
    """in float64; None for nothing"""
    measurements: Mapping[str, float]


def check_max_base_rank(owner: str, max_base_rank: int) -> None:
    """INVALID_ARGUMENT for a cap that is none."""
    if max_base_rank < 0:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"{owner}: expected max_base_rank >= 0 (0 for no cap), got {max_base_rank}",
        )


def with_changed_base(rule: str, combined: Properties, *, exact: bool) -> Properties:
    """What a method promises once part of its result goes into the base model.

    DoRA divides by row norms of the frozen weight and HiRA multiplies by its entries: a changed
    base model would change what such an adapter means.

    Args:
        rule: the compression rule's name, for messages.
        combined: the method's properties.
        exact: whether nothing is lost.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a method that keeps all that was learnt itself.
    """
    if combined.keeps_total:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the compression rule {rule} adds what was learnt to the base model, and this method "
            "keeps all of it in its own state: it would count twice",
            hint="Use truncate or energy, or another method",
        )
    return replace(
        combined, exact=exact, changes_base=True, kinds=combined.kinds & {AdapterKind.LORA}
    )


def trimmed(change: LoraFactors, *, tolerance: float) -> LoraFactors | None:
    """The product with as few components as an error of `tolerance` allows; None for none."""
    svd = qr_core_svd([change.b_DR], [change.a_RK], rank=change.rank)
    kept = next(q for q in range(svd.rank + 1) if q == svd.rank or svd.tail_norm(q) <= tolerance)
    return _balanced(svd, kept)


def grown(base: LoraFactors | None, change: LoraFactors | None, *, max_base_rank: int) -> GrownBase:
    """The stack with a round's change.

    Args:
        base: the stack before.
        change: what the round adds, of any rank.
        max_base_rank: the cap; 0 for none but the layer's own min(D, K).
    """
    # A product of nothing, as from workers that did not move, takes no component.
    if change is not None and not (change.b_DR.any() and change.a_RK.any()):
        change = None
    parts = [part.to(torch.float64) for part in (base, change) if part is not None]
    if not parts:
        return GrownBase(stack=None, measurements=_measured(None, 0.0))
    stack = LoraFactors(
        torch.cat([part.a_RK for part in parts]),
        torch.cat([part.b_DR for part in parts], dim=1),
    )
    whole = min(stack.out_features, stack.in_features)
    cap = min(max_base_rank or whole, whole)
    if stack.rank <= cap:
        return GrownBase(stack=stack, measurements=_measured(stack, 0.0))
    svd = qr_core_svd([stack.b_DR], [stack.a_RK], rank=cap)
    total, lost = svd.tail_norm(0), svd.tail_norm(cap)
    kept = _balanced(svd, svd.rank)
    return GrownBase(stack=kept, measurements=_measured(kept, lost / total if total > 0 else 0.0))


def _balanced(svd: ProductSVD, rank: int) -> LoraFactors | None:
    """The first components, equally large in both factors; None for rank 0."""
    if rank == 0:
        return None
    root_Q = svd.values_N[:rank].sqrt()
    return LoraFactors(root_Q[:, None] * svd.right_QK[:rank], svd.left_DQ[:, :rank] * root_Q)


def _measured(stack: LoraFactors | None, lost: float) -> dict[str, float]:
    return {
        "base_rank": float(stack.rank) if stack else 0.0,
        "base_truncation_error": lost,
    }
