"""A cohort's updates as files, read one module at a time and completed to whole adapters.

A worker sends what the round's plan asks for, which may be less than an adapter. The rest is known:
a frozen part is as the worker was given it, a component that it did not choose is unchanged or
zero, a core acts between the factors that the worker was given. Only a private B is unknown; the
identity in its place makes the "product" A itself, in which such a method aggregates.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.layout_check import check_layout
from aggregator_service.aggregation.module_cohort import BaseRows, GlobalModule, ModuleCohort
from aggregator_service.aggregation.selected_components import selected_components
from aggregator_service.aggregation.slicing import given_factors, given_tensor
from aggregator_service.aggregation.update_shares import (
    Shares,
    shared_factors,
    shared_tensors,
)
from aggregator_service.aggregation.weighting.base import UpdateFacts
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part, parse_key
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import is_finite
from fedlora.runs.plan import RoundPlan, Selection

__all__ = ["CohortFiles"]


class CohortFiles:
    """The updates of positive weight, sorted by worker, with one layout among them.

    Args:
        contributions: the updates.
        plan: what they were asked for.
        start: the adapter that the round began from; its parts stand in for what is not sent.

    Raises:
        FedLoraError: INVALID_ARGUMENT for weights that make no cohort or a worker named twice,
            LAYOUT_MISMATCH for updates of different modules or shapes, INVALID_PAYLOAD for
            updates that lack a part; what `AdapterFile` raises.
    """

    def __init__(
        self,
        contributions: Sequence[Contribution],
        *,
        plan: RoundPlan | None = None,
        start: AdapterFile | None = None,
    ) -> None:
        _check_weights(contributions)
        self._plan, self._start = plan or RoundPlan(), start
        self.contributions = tuple(
            sorted((c for c in contributions if c.weight > 0), key=lambda c: c.worker)
        )
        """those present, sorted by worker"""
        given_U = torch.tensor([c.weight for c in self.contributions], dtype=torch.float64)
        self.weights_U = given_U / given_U.sum()
        """of the updates present, in float64, summing to 1"""
        self._stack = contextlib.ExitStack()
        try:
            self.files = [self._stack.enter_context(c.open()) for c in self.contributions]
            for file in self.files:
                if start is None:
                    file.check_complete()
                check_layout(self._frame, file)
        except BaseException:
            self._stack.close()
            raise
        first = self.files[0]
        self.modules = self._frame.modules
        """paths of the adapted modules, sorted"""
        self.saved = {key: first.shapes[key] for key in first.saved}
        """shapes of the tensors trained in full, by key, sorted"""
        self.ranks = tuple(self._largest_rank(u) for u in range(len(self.files)))
        """the largest of each update; of what the worker was given, where it chose components"""
        self.largest_rank = max(self.ranks)
        """over modules and workers"""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all files."""
        self._stack.__exit__(kind, error, trace)

    @property
    def largest_size(self) -> int:
        """Numbers in one module of all updates, at most."""
        return sum(self.ranks) * max(sum(self.features(m)) for m in self.modules)

    @property
    def facts(self) -> tuple[UpdateFacts, ...]:
        """What the weighting rule is told of each update."""
        return tuple(
            UpdateFacts(worker=c.worker, num_examples=c.weight, rank=rank, metrics=c.metrics)
            for c, rank in zip(self.contributions, self.ranks, strict=True)
        )

    def module_cohort(
        self,
        module: str,
        weights_U: Tensor,
        *,
        device: torch.device | str = "cpu",
        state: Mapping[str, Tensor] | None = None,
        round: int = 1,
        base_rows: BaseRows | None = None,
        grams: ClientGrams | None = None,
        shares_U: Shares | None = None,
    ) -> ModuleCohort:
        """One module of every update, as `factors` has it, with what else is known of the round.

        Where `shares_U` says how much of each update's change counts, that much of it.
        """
        members, sent = self.factors(module, device), self.sent(module, device)
        extras = [self._extras(u, module, device) for u in range(len(self.files))]
        if shares_U is not None and sent is not None:
            members = shared_factors(members, sent, shares_U)
            extras = self._shared_extras(module, extras, shares_U, device)
        return ModuleCohort.of(
            members,
            weights_U,
            extras=extras,
            sent=sent,
            start=self.start(module, device),
            state=state,
            round=round,
            base_rows=base_rows,
            grams=grams,
            names=[c.worker for c in self.contributions],
        )

    def factors(self, module: str, device: torch.device | str = "cpu") -> list[LoraFactors]:
        """One module of every update, completed, with the scale folded in.

        In float32 where that holds every update as sent: a cohort is read and kept at half the
        size. Else in float64.
        """
        if self._is_whole and all(file.is_narrow(module) for file in self.files):
            narrow = [file.factors(module, device, torch.float32) for file in self.files]
            if all(is_finite(f.b_DR) for f in narrow):
                return narrow
        # Workers of one rank share what they were given, frozen factors above all.
        given = functools.cache(functools.partial(self._plain, module=module, device=device))
        return [self._completed(u, module, device, given) for u in range(len(self.files))]

    def sent(self, module: str, device: torch.device | str = "cpu") -> list[LoraFactors] | None:
        """What each worker was given of a module; None where it is unknown."""
        if self._start is None:
            return None
        # Workers of one rank were given the same: a thousand of them share one copy.
        ranks = [self._given_rank(u, module) for u in range(len(self.files))]
        given = {rank: self._given(rank, module, device) for rank in set(ranks)}
        return [given[rank] for rank in ranks]

    def start(self, module: str, device: torch.device | str = "cpu") -> GlobalModule | None:
        """A module of the adapter that the round began from; None where it is unknown."""
        if self._start is None:
            return None
        factors = self._start.factors(module, device)
        if Part.B in self._plan.private:
            factors = _alone(factors.a_RK, factors.rank)
        return GlobalModule(
            factors=factors,
            base=self._start.base(module, device),
            extras=self._start.extras(module, device),
        )

    def saved_tensors(self, key: str, shares_U: Shares | None = None) -> list[Tensor]:
        """A tensor trained in full, of every update, in float64; shares as in `module_cohort`."""
        tensors = [file.tensor(key) for file in self.files]
        if shares_U is None or self._start is None:
            return tensors
        return shared_tensors(tensors, [self._start.tensor(key)] * len(tensors), shares_U)

    def change_norms(self) -> tuple[float, ...]:
        """How far each update moved from what its worker was given, over all that it sends.

        The Euclidean norm of the numbers as they are sent, in float64; zeros where it is unknown
        what was given.
        """
        start = self._start
        if start is None:
            return (0.0,) * len(self.files)
        squares: list[list[float]] = [[] for _ in self.files]
        for key in self.files[0].shapes:
            parsed = parse_key(key)
            # Workers of one rank were given the same: a thousand of them share one copy.
            given: dict[int, Tensor] = {}
            for u, file in enumerate(self.files):
                rank = 0 if parsed.part is None else self._given_rank(u, parsed.path)
                if rank not in given:
                    given[rank] = given_tensor(start, key, rank).double()
                squares[u].append(float((file.tensor(key) - given[rank]).square().sum()))
        return tuple(math.sqrt(math.fsum(of_one)) for of_one in squares)

    def features(self, module: str) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self._frame.features(module)

    def _largest_rank(self, u: int) -> int:
        if self._plan.selection is not Selection.ALL:
            return self._given_rank(u, self.modules[0])
        return max(self.files[u].rank(m) for m in self.files[u].modules)

    @property
    def _is_whole(self) -> bool:
        """Whether updates are adapters as they are, with nothing to be completed."""
        plan = self._plan
        whole = {Part.A, Part.B} <= {*plan.trained} and Part.B not in plan.private
        return whole and plan.selection is Selection.ALL

    @property
    def _frame(self) -> AdapterFile:
        """The file that every update is held against."""
        return self._start or self.files[0]

    def _given_rank(self, u: int, module: str) -> int:
        return self.contributions[u].given_rank or self.files[u].rank(module)

    def _plain(self, rank: int, *, module: str, device: torch.device | str) -> LoraFactors:
        assert self._start is not None  # noqa: S101
        return given_factors(self._start, module, rank, device)

    def _given(self, rank: int, module: str, device: torch.device | str) -> LoraFactors:
        given = self._plain(rank, module=module, device=device)
        return _alone(given.a_RK, self._rows(module)) if Part.B in self._plan.private else given

    def _rows(self, module: str) -> int:
        """Of the products, where B is private: the largest rank."""
        return max(file.rank(module) for file in self.files)

    def _extras(self, u: int, module: str, device: torch.device | str) -> dict[Part, Tensor]:
        extras = self.files[u].extras(module, device)
        if self._plan.selection is not Selection.ALL and Part.SELECTED not in extras:
            # A whole adapter, as saved by PEFT, holds every component.
            extras[Part.SELECTED] = torch.ones(self._given_rank(u, module), dtype=torch.float64)
        return extras

    def _shared_extras(
        self,
        module: str,
        extras: Sequence[dict[Part, Tensor]],
        shares_U: Shares,
        device: torch.device | str,
    ) -> list[dict[Part, Tensor]]:
        assert self._start is not None  # noqa: S101
        given = self._start.extras(module, device)
        shared = {
            part: shared_tensors([e[part] for e in extras], [given[part]] * len(extras), shares_U)
            for part in extras[0]
        }
        return [{part: shared[part][u] for part in shared} for u in range(len(extras))]

    def _completed(
        self,
        u: int,
        module: str,
        device: torch.device | str,
        given_at: Callable[[int], LoraFactors],
    ) -> LoraFactors:
        file = self.files[u]
        parts = file.parts(module)
        if Part.B in self._plan.private:
            return _alone(file.part(module, Part.A, device), self._rows(module))
        if {Part.A, Part.B} <= {*parts}:
            return file.factors(module, device)
        assert self._start is not None  # noqa: S101
        given = given_at(self._given_rank(u, module))
        if self._plan.selection is not Selection.ALL:
            return self._expanded(u, module, given, device)
        if Part.CORE in parts:
            # The core that was given is folded into the B that was given: take the plain one.
            plain_b = self._start.part(module, Part.B, device)[:, : given.rank]
            scaled = plain_b * self._start.scale(module, given.rank)
            return LoraFactors(given.a_RK, scaled @ file.part(module, Part.CORE, device))
        rank = file.rank(module)
        scale = file.scale(module, rank)
        a = file.part(module, Part.A, device) if Part.A in parts else given.a_RK[:rank]
        b = file.part(module, Part.B, device) * scale if Part.B in parts else given.b_DR[:, :rank]
        return LoraFactors(a, b)

    def _expanded(
        self, u: int, module: str, given: LoraFactors, device: torch.device | str
    ) -> LoraFactors:
        """The update with the components that the worker did not choose."""
        file = self.files[u]
        a, b = given.a_RK.clone(), given.b_DR.clone()
        chosen = selected_components(file, module, given.rank).to(a.device)
        zero = self._plan.selection is Selection.REST_ZERO
        if Part.A in self._plan.trained:
            a = torch.zeros_like(a) if zero else a
            if len(chosen):
                a[chosen] = file.part(module, Part.A, device)
        if Part.B in self._plan.trained:
            b = torch.zeros_like(b) if zero else b
            if len(chosen):
                sent = file.part(module, Part.B, device)
                b[:, chosen] = sent * file.scale(module, given.rank)
        return LoraFactors(a, b)


def _alone(a_RK: Tensor, rows: int) -> LoraFactors:
    """A with the identity for B, so that the product is A with rows of zeros below it."""
    return LoraFactors(a_RK, torch.eye(rows, len(a_RK), dtype=a_RK.dtype, device=a_RK.device))


def _check_weights(contributions: Sequence[Contribution]) -> None:
    names = [c.worker for c in contributions]
    if not names:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            "a cohort needs updates, got none",
            hint="Name at least one with a positive weight",
        )
    if len(set(names)) != len(names):
        raise FedLoraError(Reason.INVALID_ARGUMENT, f"a worker occurs twice in {sorted(names)}")
    bad = {c.worker: c.weight for c in contributions if not 0 <= c.weight < float("inf")}
    if bad:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"weights must be finite and not negative, got {json.dumps(bad)}",
        )
    if not any(c.weight > 0 for c in contributions):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"none of the {len(names)} updates has a positive weight: {', '.join(sorted(names))}",
            hint="Give at least one of them a weight, such as its number of examples",
        )
