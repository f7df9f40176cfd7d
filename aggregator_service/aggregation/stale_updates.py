"""Updates that began from an older version than the one their round builds on.

Rule      T = g P + sum_u w_u P_u,   w_u = (n_u / N) alpha s(t_u),   g = 1 - sum_u w_u
          with P the product of the version before, n_u examples of N in all, t_u the rounds by
          which update u is late, s(t) = (1 + t)^-x: what a discount takes from an update stays
          with the version before, which so becomes one more member of the cohort.
FedBuff   (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2021,
          arXiv:2106.06639, algorithm 1): alpha = 1, and a late update is *rebased*: what counts is
          its change since the version it began from, made to the version before. With nobody late
          this is the plain mean.
FedAsync  (Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv:1903.03934,
          algorithm 1): one update, alpha < 1, not rebased: theta <- (1 - a) theta + a theta_u with
          a = alpha s(t).

Rebasing. Where a method combines the clients' components, A and B are the parameters and each
changes by what the worker changed it: A + (A_u - A_base), and B likewise, at the update's own rank.
Where it combines their products (`Properties.gauge_free`), every version may come in other
components, such a difference means nothing, and the products are taken instead, exactly, side by
side:

    P + P_u - P_base = [B  B_u  -B_base] [A; A_u; A_base]

Tensors trained in full and magnitudes change as parameters in both. An update that is not late is
left alone, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.round_context import StoredAdapter
from aggregator_service.aggregation.slicing import given_factors
from aggregator_service.aggregation.tensor_writer import TensorWriter
from fedlora.adapters.names import Part

__all__ = [
    "VERSION_BEFORE",
    "Discount",
    "LateContribution",
    "cohort_of",
]

VERSION_BEFORE = "(version before)"
"""the member that stands for what is not replaced; no worker can have this name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discount:
    """How much an update counts."""

    mixing: float = 1.0
    """alpha: share that updates replace when none is late"""
    exponent: float = 0.5
    """x of s(t) = (1 + t)^-x"""
    rebases: bool = True
    """whether a late update counts as the change that it is, or as the adapter that it is"""

    def of(self, staleness: int) -> float:
        """Alpha s(t)."""
        return self.mixing * math.pow(1 + staleness, -self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateContribution:
    """An update, and what it began from."""

    contribution: Contribution
    staleness: int
    base: StoredAdapter


@contextmanager
def cohort_of(
    updates: Sequence[LateContribution],
    *,
    discount: Discount,
    before: StoredAdapter,
    in_products: bool,
    temporary: Callable[[], Path],
) -> Iterator[list[Contribution]]:
    """The members of a round's cohort, for as long as the block lasts.

    Args:
        updates: of the round.
        discount: how much they count.
        before: the version that the round builds on.
        in_products: how late updates are rebased.
        temporary: names files, which are gone when the block ends.

    Raises:
        FedLoraError: what `AdapterFile` and `TensorWriter` raise.
    """
    members: list[Contribution] = []
    discounted: list[float] = []
    with ExitStack() as stack:
        for update in updates:
            given, share = update.contribution, discount.of(update.staleness)
            discounted.append(given.weight * (1 - share))
            member = replace(given, weight=given.weight * share)
            if update.staleness and discount.rebases and member.weight > 0:
                path = temporary()
                stack.callback(path.unlink, missing_ok=True)
                _rebase(update, before, path, in_products=in_products)
                member = replace(member, path=path, scaling=1.0, coding=None)
            members.append(member)
        # The same to the last bit, in whichever order the updates came.
        left = math.fsum(discounted)
        if left > 0:
            members.append(
                Contribution(
                    worker=VERSION_BEFORE,
                    weight=left,
                    path=before.path,
                    scaling=before.scaling,
                )
            )
        yield members


# --- rebasing ------------------------------------------------------------------------------


def _rebase(
    update: LateContribution, before: StoredAdapter, output: Path, *, in_products: bool
) -> None:
    """Writes an update as if it had begun from the version before: float64, scale 1."""
    given = update.contribution
    with ExitStack() as stack:
        sent = stack.enter_context(given.open())
        base, now = (
            stack.enter_context(AdapterFile(adapter.path, adapter.scaling, owner))
            for adapter, owner in (
                (update.base, "the version it began from"),
                (before, "the version before"),
            )
        )
        out = stack.enter_context(TensorWriter(output, {"format": "pt"}))
        for module in sent.modules:
            moved = _stacked if in_products else _moved
            rank = given.given_rank or sent.rank(module)
            tensors = moved(sent, base, now, module, rank)
            if Part.MAGNITUDE in sent.parts(module):
                tensors[Part.MAGNITUDE] = _sum(
                    *(f.part(module, Part.MAGNITUDE) for f in (sent, now, base))
                )
            for part in sorted(tensors):
                out.put(sent.key(module, part), tensors[part], torch.float64)
        for key in sent.saved:
            out.put(key, _sum(*(f.tensor(key) for f in (sent, now, base))), torch.float64)


def _sum(sent: Tensor, now: Tensor, base: Tensor) -> Tensor:
    return now + (sent - base)


def _moved(
    sent: AdapterFile, base: AdapterFile, now: AdapterFile, module: str, rank: int
) -> dict[Part, Tensor]:
    """The parts that were sent, each changed by what the worker changed it."""
    began, current = (given_factors(file, module, rank) for file in (base, now))
    parts = sent.parts(module)
    own = sent.rank(module)
    moved: dict[Part, Tensor] = {}
    if Part.A in parts:
        moved[Part.A] = _sum(sent.part(module, Part.A), current.a_RK[:own], began.a_RK[:own])
    if Part.B in parts:
        scaled = sent.part(module, Part.B) * sent.scale(module, own)
        moved[Part.B] = _sum(scaled, current.b_DR[:, :own], began.b_DR[:, :own])
    return moved


def _stacked(
    sent: AdapterFile, base: AdapterFile, now: AdapterFile, module: str, rank: int
) -> dict[Part, Tensor]:
    """Factors of the sum of products, side by side."""
    began, current = (given_factors(file, module, rank) for file in (base, now))
    factors = sent.factors(module)
    return {
        Part.A: torch.cat([current.a_RK, factors.a_RK, began.a_RK]),
        Part.B: torch.cat([current.b_DR, factors.b_DR, -began.b_DR], dim=1),
    }
