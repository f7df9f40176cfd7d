"""What an aggregation method is: one module's updates in, one module of the next adapter out.

    updates -> weights -> combine -> compress -> gauge -> server optimiser -> adapter

`combine` is a method's idea: what the factors of a cohort come to. It returns an adapter of
whatever rank it likes, exact stacks included. A compression rule makes of it an adapter of the
run's rank, and may put what does not fit into the base model. A gauge chooses the factors in which
its product is published. `composition.Recipe` runs the chain on one module, `driver` maps it over
the modules of a cohort's files.

Everything here is values: a method is a frozen dataclass whose fields are its options, its state
between rounds is tensors by name that it is given and returns, randomness is a generator it is
given. What a method promises (`Properties`) and asks of the workers (`RoundPlan`) is data, checked
when a run is configured.

Shape suffixes: U clients, R rank, K in_features, D out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.weighting.base import WeightingRule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.numerics import weighted_sum
from fedlora.runs.plan import RoundPlan

__all__ = [
    "About",
    "Combination",
    "CompressionRule",
    "Method",
    "MethodDefaults",
    "ModuleResult",
    "Properties",
    "Publication",
    "ServerOptimizer",
    "Work",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """What a method promises and needs."""

    exact: bool
    """what is published changes the model by T itself, but for rounding"""
    linear: bool
    """the server needs only weighted sums over clients of what they send, so that secure
    aggregation could hide the single updates. Nothing is refused by it: fedlora's server has
    every update (SECURITY.md)"""
    keeps_basis: bool
    """components of the result are the clients' components, so that state that lives in factor
    space (Adam's moments, server momentum) stays meaningful over a round"""
    mixed_ranks: bool
    """members of a cohort may differ in rank"""
    gauge_free: bool = False
    """the result depends on the clients' products alone, not on how they are factored"""
    strongest_first: bool = False
    """clients of lower rank are given the first components, and these have to be the strongest"""
    min_clients: int = 1
    """fewest members for which the result means something: 1 for all of fedlora's own, which give
    a worker alone its own product back; a trimmed mean of another package needs more"""
    changes_base: bool = False
    """part of the result goes into the base model"""
    draws_b: bool = False
    """then the next round begins from a random B and an A of zeros, and not the reverse"""
    keeps_total: bool = False
    """the method's state holds all that was ever learnt; in the base model it would count twice"""
    needs_start: bool = False
    """the adapter that the round began from has to be known"""
    kinds: frozenset[AdapterKind] = frozenset({AdapterKind.LORA})
    """adapter families it can combine"""


_UNSAID = "not said"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What somebody choosing a method has to know; docs/algorithms.md is made of it."""

    title: str = _UNSAID
    paper: str = _UNSAID
    """authors, year and number, as in the method's own docstring"""
    exactness: str = _UNSAID
    """how far the published model is from the mean of products"""
    base_rank: str = "tR"
    """rank that t rounds have added to the base model, where they change it, up to min(d, k); a
    formula of `traffic`"""
    cost: str = _UNSAID
    """server work per layer"""
    needs: str = _UNSAID
    """beyond the factors themselves; "nothing" for nothing"""
    choose: str = _UNSAID
    """when to take it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What happens to a result after aggregation: one division of B, then one rounding.

    A method that promises to be no worse than another has to compare what readers will get.
    """

    dtype: torch.dtype
    """element type of the published file"""
    scaling: float | Callable[[int], float] = 1.0
    """s with which readers serve it, or s of the rank; lora_B is B / s"""

    def scale_of(self, rank: int) -> float:
        """S of an adapter of that rank."""
        return self.scaling(rank) if callable(self.scaling) else self.scaling

    def stored(self, factors: LoraFactors) -> tuple[Tensor, Tensor]:
        """lora_A and lora_B as the file holds them."""
        lora_b = factors.b_DR.to(torch.float64) / self.scale_of(factors.rank)
        return factors.a_RK.to(self.dtype), lora_b.to(self.dtype)

    def read_back(self, factors: LoraFactors) -> LoraFactors:
        """The float64 factors a reader of the file has."""
        lora_a, lora_b = self.stored(factors)
        scaling = self.scale_of(factors.rank)
        return LoraFactors.fold(lora_a.to(torch.float64), lora_b.to(torch.float64), scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step of the chain is told besides the cohort."""

    rank: int
    """rank of the adapter to publish"""
    generator: torch.Generator
    """on the CPU: random starts, rows for spare components"""
    publication: Publication
    """how the result will be stored"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combination:
    """What a combine rule makes of one module, before compression."""

    factors: LoraFactors
    """an adapter, of any rank, in float64"""
    extras: Mapping[Part, Tensor] = field(default_factory=dict)
    """other parts of the adapter to publish"""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """kept for the next round"""
    measurements: Mapping[str, float] = field(default_factory=dict)
    """finite numbers by name"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleResult:
    """One module of the next global adapter, with what was measured on the way."""

    factors: LoraFactors
    base: LoraFactors | None = None
    """everything added to the base model so far, this round included; None for nothing"""
    extras: Mapping[Part, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)


class CompressionRule(Protocol):
    """How a combination becomes an adapter of the run's rank."""

    name: ClassVar[str]

    @property
    def stacks(self) -> bool:
        """Whether it holds the updates side by side, and square matrices of their ranks."""
        ...

    def properties(self, combined: Properties) -> Properties:
        """What a method of those properties promises after this rule.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD where the two do not go together, with the reason.
        """
        ...

    def compress(self, combination: Combination, cohort: ModuleCohort, work: Work) -> ModuleResult:
        """The adapter to publish; extras, state and measurements are passed on."""
        ...


class ServerOptimizer(Protocol):
    """How far the global adapter follows what a round came to, tensor by tensor."""

    name: ClassVar[str]

    def step(
        self, current: Tensor, proposed: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The tensor to publish, and the state for the next round.

        Args:
            current: as the round's workers were given it, float64.
            proposed: what the round came to; proposed - current is the pseudo-gradient, negated.
            state: what the step before returned for this tensor; empty at first.
        """
        ...


class Method(Protocol):
    """An aggregation method, stated on one module: a frozen dataclass of its options.

    It must not depend on the order of the cohort but through the last bits of sums (the driver
    sorts by worker), and computes in float64. `MethodDefaults` has the usual answers.
    """

    name: ClassVar[str]
    """registry name"""
    about: ClassVar[About]

    @property
    def properties(self) -> Properties:
        """Of `combine` alone; the compression rule turns them into the method's."""
        ...

    @property
    def compression(self) -> CompressionRule:
        """The method's own, unless a run names another."""
        ...

    @property
    def weighting(self) -> WeightingRule | None:
        """Weights that belong to the method; None: the run's."""
        ...

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """What round t = 1, 2, .. asks of a worker, as a cycle."""
        ...

    stacks: ClassVar[bool]
    """whether it holds the updates side by side, and square matrices of their ranks"""
    reads_grams: ClassVar[bool]
    """whether it gains from Gram matrices that were made while updates arrived"""

    @property
    def reads_base(self) -> frozenset[AdapterKind]:
        """Adapter families for which the method, with its options, needs the frozen weights."""
        ...

    def target(self, cohort: ModuleCohort) -> LoraFactors | None:
        """The ideal aggregate as the method means it, as factors; None for T."""
        ...

    def magnitude(self, cohort: ModuleCohort, published: LoraFactors) -> Tensor:
        """DoRA's vector of row norms, D, for the direction that is published, as it is read."""
        ...

    def refined(self, combined: LoraFactors, trained: LoraFactors) -> LoraFactors:
        """What a round came to, after a worker with the server's data has trained on it."""
        ...

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """What the cohort comes to.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD for ranks that the method cannot combine.
        """
        ...


class MethodDefaults:
    """The usual answers to what `Method` asks beside `combine`."""

    __slots__ = ()

    about: ClassVar[About] = About()
    stacks: ClassVar[bool] = False
    reads_grams: ClassVar[bool] = False

    @property
    def weighting(self) -> WeightingRule | None:
        """The run's."""
        return None

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """A and B are trained and sent every round."""
        return (RoundPlan(),)

    @property
    def reads_base(self) -> frozenset[AdapterKind]:
        """None."""
        return frozenset()

    def target(self, cohort: ModuleCohort) -> LoraFactors | None:  # noqa: ARG002
        """T."""
        return None

    def magnitude(self, cohort: ModuleCohort, published: LoraFactors) -> Tensor:  # noqa: ARG002
        """The weighted mean."""
        return weighted_sum([extras[Part.MAGNITUDE] for extras in cohort.extras], cohort.weights_U)

    def refined(self, combined: LoraFactors, trained: LoraFactors) -> LoraFactors:  # noqa: ARG002
        """What was trained."""
        return trained
