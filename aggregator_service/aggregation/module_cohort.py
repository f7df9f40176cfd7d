"""What a method is given: one module of every update of a cohort, and where the round began.

Shape suffixes: U clients, R rank, K in_features, D out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aggregator_service.aggregation.client_grams import ClientGrams
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.stacked import StackedFactors
from fedlora.errors import FedLoraError, Reason

__all__ = ["BaseRows", "GlobalModule", "ModuleCohort", "uniform_rank"]

_MIXED = "flora_na, optimal, auto, flexlora, florist, flora, fedhl, hetlora or replication"

BaseRows = Callable[[int, int], Tensor]
"""rows [begin, end) of a frozen weight, D x K, float64: W0 is never held whole"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalModule:
    """One module of the global adapter, as rounded and published: where a round began."""

    factors: LoraFactors
    """folded"""
    base: LoraFactors | None = None
    """what has been added to the base model so far; None for nothing"""
    extras: Mapping[Part, Tensor] = field(default_factory=dict)
    """other parts: magnitude, core"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleCohort:
    """One module of every update that counts, scale folded in, in the order of their names.

    Parts that a worker did not send are filled in before: a frozen part from where the round
    began, a private B by the identity (the product is then A itself), components that were not
    chosen by what the plan says they are. Made by `of`.
    """

    members: tuple[LoraFactors, ...]
    weights_U: Tensor
    """float64 on the CPU, all positive, summing to 1"""
    extras: tuple[Mapping[Part, Tensor], ...]
    """other parts of each update: magnitude, core, selected"""
    sent: tuple[LoraFactors, ...] | None = None
    """what each worker was given at the start of the round: `start` at its rank, as rounded"""
    start: GlobalModule | None = None
    """the global adapter at the start of the round; None where it is unknown (offline)"""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """what the method returned for this module in the round before; empty in the first"""
    round: int = 1
    base_rows: BaseRows | None = None
    """the module's frozen weight, where the server has it"""
    grams: ClientGrams | None = None
    """Gram matrices of the members near `start`, where they were made beforehand"""
    names: tuple[str, ...] = ()
    """of the members, for messages; empty where nobody knows"""

    @classmethod
    def of(
        cls,
        members: Sequence[LoraFactors],
        weights_U: Tensor,
        *,
        extras: Sequence[Mapping[Part, Tensor]] = (),
        sent: Sequence[LoraFactors] | None = None,
        start: GlobalModule | None = None,
        state: Mapping[str, Tensor] | None = None,
        round: int = 1,
        base_rows: BaseRows | None = None,
        grams: ClientGrams | None = None,
        names: Sequence[str] = (),
    ) -> ModuleCohort:
        """Checks a cohort and drops its members of weight 0.

        Weight 0 is absence: left in, a client would still span directions that a surrogate uses.

        Raises:
            FedLoraError: INVALID_ARGUMENT for weights or shapes that make no cohort.
        """
        if not members:
            raise FedLoraError(Reason.INVALID_ARGUMENT, "a cohort needs updates, got none")
        weights = weights_U.detach().to("cpu", torch.float64)
        if weights.ndim != 1 or len(weights) != len(members):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"expected {len(members)} weights, got a tensor of shape {list(weights.shape)}",
            )
        finite = bool(torch.isfinite(weights).all())
        if not finite or bool((weights < 0).any()) or not weights.any():
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "weights must be finite, none negative and not all zero, got "
                f"{_given(weights, names)}",
            )
        called = [repr(n) for n in names] or [f"member {u + 1}" for u in range(len(members))]
        here = [u for u, w in enumerate(weights.tolist()) if w > 0]
        present = tuple(members[u] for u in here)
        for u, other in zip(here[1:], present[1:], strict=True):
            mine, theirs = (
                (f.out_features, f.in_features, f.dtype, f.a_RK.device) for f in (present[0], other)
            )
            if mine != theirs:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    "one module must have one shape, dtype and device in the whole cohort, got "
                    f"{mine[0]}x{mine[1]} {mine[2]} on {mine[3]} from {called[here[0]]} and "
                    f"{theirs[0]}x{theirs[1]} {theirs[2]} on {theirs[3]} from {called[u]}",
                )
        weights = weights[here]
        return cls(
            members=present,
            weights_U=weights / weights.sum(),
            extras=tuple(extras[u] for u in here) if extras else tuple({} for _ in here),
            sent=None if sent is None else tuple(sent[u] for u in here),
            start=start,
            state=state or {},
            round=round,
            base_rows=base_rows,
            # Of another cohort, once somebody is left out.
            grams=grams if len(here) == len(members) else None,
            names=tuple(names[u] for u in here) if names else (),
        )

    def name(self, u: int) -> str:
        """What messages call a member."""
        return repr(self.names[u]) if self.names else f"member {u + 1} of {len(self.members)}"

    @property
    def largest_rank(self) -> int:
        """Over the members."""
        return max(f.rank for f in self.members)

    @property
    def start_at_rank(self) -> LoraFactors | None:
        """Where the round began, at the members' largest rank; zeros in components it lacks."""
        if self.start is None:
            return None
        rank, whole = self.largest_rank, self.start.factors
        return LoraFactors(whole.a_RK[:rank], whole.b_DR[:, :rank]).padded(rank)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the members."""
        return self.members[0].dtype

    def stack(self) -> StackedFactors:
        """T itself in float64, as one product of rank R = sum of the members' ranks."""
        grams = None if self.grams is None else self.grams.stack()
        return StackedFactors(self.members, self.weights_U.tolist(), grams=grams)


def uniform_rank(name: str, cohort: ModuleCohort, *, mixed: bool, rank: int = 0) -> int:
    """The largest rank of the cohort, which a combination of its factors has.

    Args:
        name: the method's, for messages.
        cohort: the members.
        mixed: whether the method takes members of different rank.
        rank: the one to be published; 0 for any.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for mixed ranks where the method has none, and for a
            result of lower rank than the cohort's.
    """
    ranks = sorted({f.rank for f in cohort.members})
    if len(ranks) > 1 and not mixed:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} needs one rank for the whole cohort, got {ranks}: {_holders(cohort, ranks)}",
            hint=f"Use {_MIXED}, which take mixed ranks",
        )
    if 0 < rank < ranks[-1]:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{name} combines factors component by component and cannot publish rank {rank} "
            f"from updates of rank {ranks[-1]}, as {_holders(cohort, ranks[-1:])}",
            hint="Use optimal, which truncates to any rank",
        )
    return ranks[-1]


def _holders(cohort: ModuleCohort, ranks: Sequence[int]) -> str:
    """A member of each rank: of a thousand workers one is enough to look into."""
    all_ranks = [f.rank for f in cohort.members]
    return ", ".join(f"{rank} from {cohort.name(all_ranks.index(rank))}" for rank in ranks)


def _given(weights_U: Tensor, names: Sequence[str]) -> str:
    """Weights, with whose they are."""
    if not names:
        return str(weights_U.tolist())
    return ", ".join(f"{w} of {n!r}" for n, w in zip(names, weights_U.tolist(), strict=True))
