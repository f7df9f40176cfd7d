"""The certificate of a published adapter, from the files it was made of.

Whole-adapter figures are square roots of sums of squares over modules, numerator and denominator
apart; the effective rank is that of the block-diagonal operator; measurements are means over the
modules. Everything is computed again from the committed bytes: nothing is taken over from the
aggregation but the weights, how much of each change counted and what the method measured, and
nothing from before it but products of pairs of updates (`gram_blocks`). What the workers moved
(`sensitivity`) is measured here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.certificate import ModuleNorms, measure
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.memory import measured_at_a_time
from aggregator_service.aggregation.module_cohort import GlobalModule
from aggregator_service.aggregation.parallel import in_order
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from aggregator_service.aggregation.sensitivity import movement
from aggregator_service.aggregation.state_file import StateReader
from fedlora.adapters.axis import Axis
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import plan_for
from fedlora.runs.report import Certificate

__all__ = ["certify"]

_UNIT_ROUNDOFF = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}
"""largest relative error of rounding one number"""


def certify(
    contributions: Sequence[Contribution],
    recipe: Recipe,
    *,
    published: StoredAdapter,
    context: RoundContext | None = None,
    measurements: Mapping[str, Mapping[str, float]] | None = None,
    shares: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
    threads: int = 0,
    memory_bytes: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Measures a published adapter against the updates it was made from.

    Args:
        contributions: the updates, with the weights that counted.
        recipe: what combined them.
        published: the file that was sent out.
        context: where the round stood; Gram blocks are of use to every method that changes no
            update before it sums. Without a start all figures against the round's change are NaN.
        measurements: what the recipe measured, by module path.
        shares: how much of a worker's change counted, where that was not all of it.
        device: where the arithmetic runs, in float64.
        threads: modules at a time on a CPU; 0 for as many as torch would use.
        memory_bytes: what measuring may take; fewer modules at a time keep to it, one at least. 0
            for half of the machine's, or of what is free on a GPU.
        progress: called with (modules done, modules in all).

    Raises:
        FedLoraError: LAYOUT_MISMATCH for files of different modules; what `CohortFiles` raises.
    """
    context, given = context or RoundContext(), measurements or {}
    plan = plan_for(recipe.plans(context.kind), context.round)
    axis = Axis.of(plan.settings.get("axis", Axis.RANK.code))
    norms: dict[str, ModuleNorms] = {}
    named: dict[str, Mapping[str, float]] = {}
    with ExitStack() as stack:
        sent = AdapterFile(published.path, published.scaling, "the published adapter")
        stack.enter_context(sent)
        start = None
        if context.start is not None:
            file = AdapterFile(context.start.path, context.start.scaling, "the version before")
            start = stack.enter_context(file)
        cohort = stack.enter_context(CohortFiles(contributions, plan=plan, start=start))
        held = stack.enter_context(StateReader(context.state))
        _check_modules(cohort, sent)
        shares_U = (
            tuple(shares.get(c.worker, 1.0) for c in cohort.contributions) if shares else None
        )
        roundoff = _UNIT_ROUNDOFF[sent.dtype()]
        rank = max(sent.rank(module) for module in cohort.modules)
        threads = measured_at_a_time(
            recipe, cohort, rank=rank, budget=memory_bytes, threads=threads, device=device
        )

        def measured(module: str) -> tuple[ModuleNorms, dict[str, float]]:
            members = cohort.module_cohort(
                module,
                cohort.weights_U,
                device=device,
                state=held.of(module),
                round=context.round,
                grams=context.grams.of(module, cohort) if context.grams else None,
                shares_U=shares_U,
            )
            reads = sent.factors(module, device)
            if Part.B in plan.private:
                # B is the workers' own: what is measured is A, as in the updates.
                eye = torch.eye(reads.rank, dtype=torch.float64, device=reads.a_RK.device)
                reads = LoraFactors(reads.a_RK, eye)
            norm = measure(
                members,
                published=GlobalModule(factors=reads, base=sent.base(module, device)),
                target=recipe.method.target(members),
            )
            return norm, movement(members, axis, plan.trained)

        found = stack.enter_context(
            closing(in_order(measured, cohort.modules, device=device, threads=threads))
        )
        for module, (norm, moved) in zip(cohort.modules, found, strict=True):
            norms[module] = norm
            named[module] = {**given.get(module, {}), **moved}
            if progress is not None:
                progress(len(norms), len(cohort.modules))
    entries = tuple(
        n.entry(module, roundoff=roundoff, measurements=named[module])
        for module, n in norms.items()
    )
    overall = _whole(list(norms.values())).entry(
        "", roundoff=roundoff, measurements=_means(list(named.values()))
    )
    overall = replace(overall, measurements={**overall.measurements, **given.get("", {})})
    return Certificate(method=recipe.method.name, overall=overall, modules=entries)


def _whole(parts: Sequence[ModuleNorms]) -> ModuleNorms:
    return ModuleNorms(
        ideal=math.hypot(*(p.ideal for p in parts)),
        change=math.hypot(*(p.change for p in parts)),
        error=math.hypot(*(p.error for p in parts)),
        factor_mean=math.hypot(*(p.factor_mean for p in parts)),
        bound=math.hypot(*(p.bound for p in parts)),
        values_sum=math.fsum(p.values_sum for p in parts),
        values_squares=math.fsum(p.values_squares for p in parts),
        rank=max(p.rank for p in parts),
        is_estimate=any(p.is_estimate for p in parts),
    )


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    # A worker's own numbers belong to a layer: their mean over layers means nothing.
    names = sorted({name for part in parts for name in part if not name.endswith("]")})
    return {
        name: math.fsum(part[name] for part in parts if name in part)
        / sum(name in part for part in parts)
        for name in names
    }


def _check_modules(cohort: CohortFiles, file: AdapterFile) -> None:
    for module in cohort.modules:
        if module not in file.modules or file.features(module) != cohort.features(module):
            raise FedLoraError(
                Reason.LAYOUT_MISMATCH,
                f"{file.owner} does not fit the updates at module {module!r}",
                hint="Certify the file that was made from these updates",
            )
