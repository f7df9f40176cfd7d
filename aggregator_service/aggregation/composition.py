"""A method and the rules around it, put together and checked.

    updates -> weighting -> method.combine -> compression -> gauge -> server optimiser -> adapter

Plug-ins add to what the rounds ask of workers. The parts know nothing of each other; `compose`
refuses what cannot work, before a run begins, and says why. A recipe with nothing but a method is
that method as its paper has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aggregator_service.aggregation.base import (
    CompressionRule,
    Method,
    ModuleResult,
    Properties,
    Publication,
    ServerOptimizer,
    Work,
)
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.gauge import NEAREST, in_gauge
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.update_shares import Shares
from aggregator_service.aggregation.weighting.base import UpdateFacts, WeightingRule
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import Plugin, Traits
from fedlora.runs.method import Gauge
from fedlora.runs.plan import RoundPlan

__all__ = ["Recipe", "compose", "gauges_of"]

_FACTORS = (Part.A, Part.B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way from a cohort to an adapter. Made by `compose`."""

    method: Method
    compression: CompressionRule
    gauge: Gauge
    weighting: WeightingRule
    server_optimizer: ServerOptimizer | None
    properties: Properties
    plugins: tuple[Plugin, ...] = ()
    """what goes into local training beside the method"""

    @property
    def stacks(self) -> bool:
        """Whether it holds the updates side by side, and square matrices of their ranks."""
        # Angles between updates are found by such matrices.
        weighs = self.weighting.sees_updates
        return self.method.stacks or self.compression.stacks or weighs

    def plans(self, kind: AdapterKind = AdapterKind.LORA) -> tuple[RoundPlan, ...]:
        """What the rounds ask of workers, as a cycle.

        The method's plans, with what the rules around it and the adapter's family add.
        """
        return tuple(self._plan(plan, kind) for plan in self.method.plans)

    @property
    def takes_mixed_ranks(self) -> bool:
        """Whether members of a cohort may differ in rank."""
        has_extras = any(plugin.traits.has_extras for plugin in self.plugins)
        return self.properties.mixed_ranks and not has_extras

    def shares(
        self,
        updates: Sequence[UpdateFacts],
        weights_U: Tensor,
        norms: Callable[[], Sequence[float]],
    ) -> Shares | None:
        """How much of each update's change counts, as the plug-ins say; None for all of it.

        An update of weight 0 is absent: nothing goes by what it says.

        Args:
            updates: of the cohort, sorted by worker.
            weights_U: of each, summing to 1.
            norms: of each update's change; called where a plug-in goes by them.
        """
        present = weights_U.nonzero().flatten().tolist()
        metrics, weights = [updates[u].metrics for u in present], weights_U[present].tolist()
        whole = product = (1.0,) * len(present)
        measured: Sequence[float] = ()
        # Those that measure come last: what they bound is what counts in the end.
        for plugin in sorted(self.plugins, key=lambda p: p.traits.needs_norms):
            changes: Sequence[float] = ()
            if plugin.traits.needs_norms:
                measured = measured or norms()
                changes = [measured[u] * c for u, c in zip(present, product, strict=True)]
            shares = plugin.shares(metrics, weights, changes)
            if shares is not None:
                product = tuple(math.prod(pair) for pair in zip(product, shares, strict=True))
        if product == whole:
            return None
        counted = dict(zip(present, product, strict=True))
        return tuple(counted.get(u, 1.0) for u in range(len(updates)))

    def aggregate_module(
        self,
        cohort: ModuleCohort,
        *,
        rank: int,
        generator: torch.Generator | None = None,
        publication: Publication | None = None,
    ) -> ModuleResult:
        """One module of the next global adapter, in float64: it is rounded once, when published.

        Args:
            cohort: the updates, weighted.
            rank: of the adapter to publish.
            generator: on the CPU; None takes one seeded with 0.
            publication: how the result will be stored; None: in the cohort's dtype, scale 1.

        Raises:
            FedLoraError: what the method and the rules raise.
        """
        work = Work(
            rank=rank,
            generator=generator or torch.Generator(),
            publication=publication or Publication(dtype=cohort.dtype),
        )
        own = replace(cohort, state=_own_state(cohort.state))
        combination = self.method.combine(own, work)
        result = self.compression.compress(combination, own, work)
        if self.gauge is not Gauge.OWN:
            result = replace(result, factors=self._in_gauge(result.factors, own, work))
        if self.server_optimizer is not None and cohort.start is not None:
            result = self._stepped(result, cohort, cohort.start, self.server_optimizer)
        if Part.MAGNITUDE in cohort.extras[0]:
            read = work.publication.read_back(result.factors)
            magnitude = self.method.magnitude(own, read)
            result = replace(result, extras={**result.extras, Part.MAGNITUDE: magnitude})
        return result

    def _in_gauge(self, factors: LoraFactors, cohort: ModuleCohort, work: Work) -> LoraFactors:
        start = cohort.start
        near = start.factors if start else factor_mean(cohort.members, cohort.weights_U)
        return in_gauge(factors, self.gauge, reference=near, generator=work.generator)

    @staticmethod
    def _stepped(
        result: ModuleResult, cohort: ModuleCohort, start: GlobalModule, optimizer: ServerOptimizer
    ) -> ModuleResult:
        """The result as far as the server optimiser follows it."""
        stepped: dict[str, Tensor] = {}
        state = dict(result.state)
        pairs = {
            "a": (start.factors.a_RK, result.factors.a_RK),
            "b": (start.factors.b_DR, result.factors.b_DR),
        }
        for part, (current, proposed) in pairs.items():
            prefix = f"{_OPTIMISER}{part}."
            held = {
                name.removeprefix(prefix): value
                for name, value in cohort.state.items()
                if name.startswith(prefix)
            }
            wide = proposed.to(torch.float64)
            stepped[part], kept = optimizer.step(current.to(wide), wide, held)
            state |= {prefix + name: value for name, value in kept.items()}
        factors = LoraFactors(stepped["a"], stepped["b"])
        return replace(result, factors=factors, state=state)

    def _plan(self, plan: RoundPlan, kind: AdapterKind) -> RoundPlan:
        trained, published = plan.trained, plan.published
        if kind is AdapterKind.DORA:
            trained, published = (*trained, Part.MAGNITUDE), (*published, Part.MAGNITUDE)
        if self.properties.changes_base and Part.BASE_A not in published:
            published = (*published, Part.BASE_A, Part.BASE_B)
        metrics = {*plan.required_metrics, *self.weighting.required_metrics}
        metrics |= {name for plugin in self.plugins for name in plugin.traits.required_metrics}
        return replace(
            plan,
            trained=trained,
            published=published,
            required_metrics=tuple(sorted(metrics)),
            keeps_basis=self.properties.keeps_basis,
            sent_extras=self._named(lambda traits: traits.sent),
            given_extras=self._named(lambda traits: traits.given),
        )

    def _named(self, extras: Callable[[Traits], tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(f"{p.name}/{name}" for p in self.plugins for name in extras(p.traits))


_OPTIMISER = "server_optimizer."
"""what the names of a server optimiser's state begin with"""


def _own_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The method's own state, without the server optimiser's."""
    return {name: value for name, value in state.items() if not name.startswith(_OPTIMISER)}


def compose(
    method: Method,
    *,
    compression: CompressionRule | None = None,
    gauge: Gauge = Gauge.OWN,
    weighting: WeightingRule | None = None,
    server_optimizer: ServerOptimizer | None = None,
    plugins: tuple[Plugin, ...] = (),
) -> Recipe:
    """Puts a method and rules together; what is left out is the method's own.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for parts that do not go together, with the reason.
    """
    rule = compression or method.compression
    properties = rule.properties(method.properties)
    if why := _why_not_refactored(method, properties):
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the compression rule {rule.name} makes other factors of a product, or parts it with "
            f"the base model, and {method.name} {why}",
            hint="Leave the compression out, or use a method that trains both factors: fedit, "
            "flora_na, optimal",
        )
    if gauge is not Gauge.OWN:
        if why := _why_not(gauge, method, properties):
            raise FedLoraError(
                Reason.UNSUPPORTED_METHOD,
                f"{method.name} with {rule.name} cannot publish in the gauge {gauge.value}, "
                f"since {why}",
                hint='Set gauge = "own", or use a method that takes every gauge: fedit, flora_na, '
                "optimal",
            )
        properties = replace(properties, keeps_basis=gauge in NEAREST)
    if weighting is not None and method.weighting is not None:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{method.name} weighs updates itself ({method.weighting.name}); the weighting rule "
            f"{weighting.name} would have no effect",
            hint="Leave the weighting out, or choose a method without weights of its own",
        )
    if server_optimizer is not None and not properties.keeps_basis:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the server optimiser {server_optimizer.name} remembers directions of A and B from "
            f"round to round, and {method.name} with {rule.name} in the gauge {gauge.value} "
            "publishes other components every round",
            hint="Use a method that keeps the clients' basis, as fedit, flora_na and lora_fair do, "
            'or gauge = "closest_a" or "procrustes"',
        )
    if server_optimizer is not None and (stray := _unmoved(method)):
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the server optimiser {server_optimizer.name} moves A and B, and {method.name} leaves "
            f"{stray} as it is in some rounds",
            hint="Use a method that trains both factors: fedit, flora_na, lora_fair",
        )
    weighs = weighting or method.weighting or NumExamples()
    return Recipe(
        method=method,
        compression=rule,
        gauge=gauge,
        weighting=weighs,
        server_optimizer=server_optimizer,
        plugins=plugins,
        # A rule that looks at single updates needs them, however they are summed afterwards.
        properties=replace(properties, linear=properties.linear and not weighs.sees_updates),
    )


def gauges_of(method: Method) -> tuple[Gauge, ...]:
    """The gauges in which a method with its own rules can publish."""
    promised = method.compression.properties(method.properties)
    return tuple(g for g in Gauge if g is Gauge.OWN or not _why_not(g, method, promised))


def _why_not(gauge: Gauge, method: Method, properties: Properties) -> str:
    """Why factors of a method's product cannot be chosen; empty where they can."""
    if any(not {*_FACTORS} <= {*plan.trained} & {*plan.published} for plan in method.plans):
        return "its workers do not train both factors: which ones they hold is part of the method"
    if properties.changes_base:
        return "the base model holds the rest of a product of exactly these factors"
    if properties.strongest_first and gauge in NEAREST:
        return (
            "clients of lower rank are given the first components, which have to be the strongest"
        )
    return ""


def _why_not_refactored(method: Method, properties: Properties) -> str:
    """Why a method's product cannot be published in new factors; empty where it can."""
    if properties.keeps_basis and not properties.changes_base:
        return ""
    if any(plan.private or Part.CORE in plan.trained for plan in method.plans):
        return "has workers train a matrix that goes with the factors they hold"
    stray = _unmoved(method)
    # What goes into the base model leaves zeros, or the start, which any other factor goes with.
    whole = properties.changes_base and not properties.draws_b
    if stray and not (properties.keeps_basis or whole):
        return f"leaves {stray} as it is in some rounds"
    return ""


def _unmoved(method: Method) -> str:
    for plan in method.plans:
        for part in _FACTORS:
            if part not in plan.published:
                return part.value.upper()
    return ""
