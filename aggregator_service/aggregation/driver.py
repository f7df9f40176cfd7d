"""A recipe over a cohort's files: from updates to one published adapter.

One module of the cohort is in memory at a time, on a CPU one per thread. Workers of weight 0 are
dropped before anything is opened, and the others sorted by name, so that neither arrival order nor
an absent worker changes a bit. Modules trained in full (`modules_to_save`) are a group of their
own: their mean is linear and exact. What a round does not change is copied from the version
before, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.base import ModuleResult, Publication
from aggregator_service.aggregation.certify import certify
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.geometry import cohort_geometry
from aggregator_service.aggregation.memory import modules_at_a_time
from aggregator_service.aggregation.parallel import in_order
from aggregator_service.aggregation.plugin_extras import served_extras
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from aggregator_service.aggregation.state_file import WEIGHTING, StateReader, StateWriter
from aggregator_service.aggregation.tensor_writer import TensorWriter
from aggregator_service.aggregation.update_shares import Shares
from aggregator_service.aggregation.weighting.base import WeightingView, Weights
from fedlora.adapters.names import Part, part_key
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError
from fedlora.numerics import weighted_sum
from fedlora.runs.plan import plan_for
from fedlora.runs.seeds import derive_seed
from fedlora.tensors.manifest import DataType

__all__ = [
    "AggregationOutcome",
    "Contribution",
    "RoundContext",
    "StoredAdapter",
    "aggregate",
    "certify",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationOutcome:
    """What was written."""

    rank: int
    """the largest of any module"""
    num_bytes: int
    """size of the file"""
    has_state: bool
    """whether there is anything to remember"""
    weights: Mapping[str, float]
    """of each worker in the sums; 0 where it did not count"""
    shares: Mapping[str, float]
    """how much of a worker's change counted, where that is not all of it"""
    measurements: Mapping[str, Mapping[str, float]]
    """what was measured, by module path; what concerns all modules is under an empty path"""


def aggregate(
    contributions: Sequence[Contribution],
    recipe: Recipe,
    *,
    output: Path,
    state_output: Path | None = None,
    context: RoundContext | None = None,
    rank: int | None = None,
    output_scaling: float | Callable[[int], float] = 1.0,
    dtype: DataType = DataType.F32,
    device: torch.device | str = "cpu",
    threads: int = 0,
    memory_bytes: int = 0,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AggregationOutcome:
    """Combines updates into one adapter file.

    Args:
        contributions: the updates; those of weight 0 are as good as absent.
        recipe: from `registry.create_recipe`.
        output: safetensors file with PEFT keys to write; equal inputs give equal bytes.
        state_output: where what the recipe remembers goes; None forgets it.
        context: where the round stands.
        rank: of the result; None takes the largest sent.
        output_scaling: s with which readers will serve it, or s of the rank: lora_B is divided
            by it, once.
        dtype: element type of the file.
        device: where the arithmetic runs, in float64.
        threads: modules at a time on a CPU; 0 for as many as torch would use. No bit of the
            result depends on it.
        memory_bytes: what combining may take; fewer modules at a time keep to it. 0 for half of
            the machine's.
        seed: of random starts and spare components; each module has a generator of its own.
        metadata: strings for the file's header; None gives PEFT's `format: pt`.
        progress: called with (modules done, modules in all).

    Raises:
        FedLoraError: what `CohortFiles`, the recipe and `TensorWriter` raise; an error of a
            module names it.
    """
    context = context or RoundContext()
    plan = plan_for(recipe.plans(context.kind), context.round)
    with ExitStack() as stack:
        start = None
        if context.start is not None:
            file = AdapterFile(context.start.path, context.start.scaling, "the version before")
            start = stack.enter_context(file)
        cohort = stack.enter_context(CohortFiles(contributions, plan=plan, start=start))
        held = stack.enter_context(StateReader(context.state))
        kept = stack.enter_context(StateWriter(state_output))
        header = {"format": "pt"} if metadata is None else metadata
        writer = stack.enter_context(TensorWriter(output, header))
        result_rank = cohort.largest_rank if rank is None else rank
        job = _Job(
            cohort=cohort,
            recipe=recipe,
            context=context,
            start=start,
            held=held,
            publication=Publication(dtype=dtype.torch_dtype, scaling=output_scaling),
            published=frozenset(plan.published),
            rank=result_rank,
            device=device,
            seed=seed,
        )
        weights = job.weigh()
        kept.put(WEIGHTING, weights.state)
        shares = recipe.shares(cohort.facts, weights.values_U, cohort.change_norms)
        measurements: dict[str, Mapping[str, float]] = {}
        if weights.measurements:
            measurements[""] = weights.measurements
        largest = 0
        work = functools.partial(job.combine, weights_U=weights.values_U, shares_U=shares)
        threads = modules_at_a_time(
            recipe, cohort, budget=memory_bytes, threads=threads, device=device
        )
        results = stack.enter_context(
            closing(
                in_order(
                    work,
                    cohort.modules,
                    device=device,
                    threads=threads,
                    # Gram matrices are work enough for threads whatever the layer's size.
                    size=None if recipe.method.reads_grams else cohort.largest_size,
                )
            )
        )
        for done, result in enumerate(results, start=1):
            for key, tensor in result.tensors.items():
                writer.put(key, tensor, dtype.torch_dtype)
            kept.put(result.module, result.state)
            largest = max(largest, result.rank)
            measurements[result.module] = result.measurements
            if progress is not None:
                progress(done, len(cohort.modules))
        for key in cohort.saved:
            tensor, state = job.saved(key, weights.values_U, shares)
            writer.put(key, tensor, dtype.torch_dtype)
            kept.put(key, state)
        extras = served_extras(recipe.plugins, cohort, held, kept, num_workers=context.num_workers)
        for key, tensor in extras:
            writer.put(key, tensor, torch.float32)
        names = [c.worker for c in cohort.contributions]
        by_worker = dict(zip(names, weights.values_U.tolist(), strict=True))
        changed = dict(zip(names, shares, strict=True)) if shares else {}
    return AggregationOutcome(
        rank=largest,
        num_bytes=writer.num_bytes,
        has_state=not kept.is_empty,
        weights={c.worker: by_worker.get(c.worker, 0.0) for c in contributions},
        shares={worker: share for worker, share in changed.items() if share != 1},
        measurements=measurements,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Combined:
    """One module, ready to be written."""

    module: str
    tensors: Mapping[str, Tensor]
    """by key"""
    rank: int
    state: Mapping[str, Tensor]
    measurements: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One aggregation under way."""

    cohort: CohortFiles
    recipe: Recipe
    context: RoundContext
    start: AdapterFile | None
    held: StateReader
    publication: Publication
    published: frozenset[Part]
    rank: int
    device: torch.device | str
    seed: int

    def weigh(self) -> Weights:
        """The weight of each update present."""
        cohort, device = self.cohort, self.device
        view = WeightingView(
            updates=cohort.facts,
            geometry=lambda: cohort_geometry(
                (cohort.factors(m, device), cohort.sent(m, device)) for m in cohort.modules
            ),
            state=self.held.of(WEIGHTING),
            module_states=self.held.every,
        )
        return self.recipe.weighting.weigh(view)

    def combine(self, module: str, weights_U: Tensor, shares_U: Shares | None) -> _Combined:
        """One module of the result; called from several threads."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "module", module))
        weights, rows = self.context.base_weights, None
        if weights is not None and self.context.kind in self.recipe.method.reads_base:
            rows = functools.partial(weights.rows, module)
        prepared = self.context.grams if self.recipe.method.reads_grams else None
        try:
            cohort = self.cohort.module_cohort(
                module,
                weights_U,
                device=self.device,
                state=self.held.of(module),
                round=self.context.round,
                base_rows=rows,
                grams=prepared.of(module, self.cohort) if prepared else None,
                shares_U=shares_U,
            )
            result = self.recipe.aggregate_module(
                cohort, rank=self.rank, generator=generator, publication=self.publication
            )
        except FedLoraError as error:
            raise FedLoraError(
                error.reason, f"module {module!r}: {error.message}", hint=error.hint
            ) from error
        return _Combined(
            module=module,
            tensors=self._tensors(module, result),
            rank=result.factors.rank,
            state=result.state,
            measurements=result.measurements,
        )

    def _tensors(self, module: str, result: ModuleResult) -> dict[str, Tensor]:
        """The module as it is published, by key.

        What the round may change is the result's; the rest is as it was.
        """
        lora_a, lora_b = self.publication.stored(result.factors)
        made = {Part.A: lora_a, Part.B: lora_b, **result.extras}
        made.pop(Part.SELECTED, None)
        if result.base is not None:
            made |= {Part.BASE_A: result.base.a_RK, Part.BASE_B: result.base.b_DR}
        if self.start is not None:
            changed = {part: made[part] for part in made if part in self.published}
            made = {**self._unchanged(self.start, module), **changed}
        elif Part.B not in self.published:
            made[Part.B] = self._mean_b(module)
        hira = self.context.kind is AdapterKind.HIRA
        return {part_key(module, part, hira=hira): made[part] for part in sorted(made)}

    def _unchanged(self, start: AdapterFile, module: str) -> dict[Part, Tensor]:
        """The parts that this round leaves, as they are stored."""
        kept = {
            part: start.raw(start.key(module, part))
            for part in start.parts(module)
            if part not in self.published
        }
        rank = start.rank(module)
        theirs, ours = start.scale(module, rank), self.publication.scale_of(rank)
        if Part.B in kept and theirs != ours:
            # Outside a run, the adapter that all started from may be served with another scale.
            kept[Part.B] = kept[Part.B].double() * (theirs / ours)
        return kept

    def saved(
        self, key: str, weights_U: Tensor, shares_U: Shares | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A tensor trained in full: the mean, as far as the server optimiser follows it."""
        mean = weighted_sum(self.cohort.saved_tensors(key, shares_U), weights_U)
        optimizer = self.recipe.server_optimizer
        if optimizer is None or self.start is None:
            return mean, {}
        return optimizer.step(self.start.tensor(key), mean, self.held.of(key))

    def _mean_b(self, module: str) -> Tensor:
        """What somebody who never took part may begin with, where B stays with the workers."""
        held = [f.factors(module, self.device) for f in self.cohort.files]
        return self.publication.stored(factor_mean(held, self.cohort.weights_U))[1]
