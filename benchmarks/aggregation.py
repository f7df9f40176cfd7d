"""What closing a round costs: time, memory and error, as ratios within one run.

    python benchmarks/aggregation.py [--quick] [--threads 2] [--device cuda] [--out PAGE]

A cohort is U clients near a common start: 30 % drift and a scale of its own per client. "Read" sums
every factor once, from memory and not from a cache: the limit that nothing can beat. "Adam" is
what a first reading of FLoRA-NA suggests, 100 steps on the dense objective |BA - T|^2 from the
factor mean, best iterate kept; "dense SVD" forms T and decomposes it. Both run in float32. Times
are the best of several; dense ones of one.

The page and the plot (aggregation.svg) are written anew by each run.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from aggregations.aims import Aim, Section, spread_of
from aggregations.cohorts import (
    LLAMA,
    ROBERTA,
    Model,
    best_time,
    cohort_of,
    made_ahead,
    peak_above,
    read_all,
    round_of,
    synchronise,
    whole_round,
)
from aggregations.dense import dense_adam, dense_svd
from aggregations.files import from_files, streamed
from aggregations.growth import growth
from aggregations.randomised import randomised_excess
from shared.processes import processor

from aggregator_service.aggregation.base import Method
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.certificate import measure
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.flexlora import FlexLoRA
from aggregator_service.aggregation.methods.flora_na import FLoRANA
from aggregator_service.aggregation.methods.florist import FLoRIST
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from fedlora.adapters.factors import LoraFactors

METHODS: dict[str, Method] = {
    "fedit": FedIT(),
    "flora_na": FLoRANA(),
    "optimal": Optimal(),
    "flexlora": FlexLoRA(),
    "florist": FLoRIST(),
}
AHEAD = ("flora_na", "optimal")
"""methods that gain from Gram blocks made before the close"""


# --- sections of the page ------------------------------------------------------------------------


def closed_by(method: Method, rank: int) -> Callable[[ModuleCohort], LoraFactors]:
    """What a method makes of a module."""
    recipe = compose(method)
    return lambda cohort: recipe.aggregate_module(cohort, rank=rank).factors


def closing(
    rows: Sequence[tuple[Model, int, int]], device: torch.device, *, threads: int
) -> Section:
    """Every method over a round in memory, against reading the round once."""
    found: list[_Closed] = []
    names = [*METHODS, *(f"{name}, ahead" for name in AHEAD), "certificate", "certificate, ahead"]
    lines = [
        "## Closing a round",
        "",
        (
            f"Milliseconds per module over a round that lies in memory, {threads} modules at a "
            "time, in brackets the multiple of one read; then the peak of memory above the updates "
            "while `optimal` runs, in MB, beside the size of one adapter of the whole model. "
            "`flora_na` and `florist` are left out where R > d / 4: they need R x R cores. The "
            "certificate is `optimal`'s, an estimate where R > d / 4. *ahead*: with the Gram "
            "blocks of pairs that the server computes while updates arrive, as every round of a "
            "run has them."
        ),
        "",
        "| model | U | modules | read | " + " | ".join(names) + " | peak | adapter |",
        "|---|" + " ---: |" * (len(names) + 5),
    ]
    for model, count, modules in rows:
        cohorts = round_of(model, count, modules, device)
        seconds = _closing_seconds(model, count, cohorts, device)
        read = seconds["read"]
        optimal = closed_by(METHODS["optimal"], model.rank)
        peak = peak_above(lambda o=optimal, c=cohorts: whole_round(o, c, device), device)
        adapter = 8 * model.width * model.rank * model.modules / 1e6
        cells = [
            f"{1e3 * seconds[n]:.3g} ({seconds[n] / read:.3g}x)" if n in seconds else "–"
            for n in names
        ]
        lines.append(
            f"| {model.name} | {count} | {len(cohorts)} | {1e3 * read:.3g} | "
            + " | ".join(cells)
            + f" | {peak:.3g} | {adapter:.3g} |"
        )
        print(lines[-1], flush=True)
        found.append(_Closed(count, seconds, peak / adapter))
    return [*lines, ""], _closing_aims(found)


class _Closed(NamedTuple):
    """What a row of the first table has found."""

    count: int
    seconds: Mapping[str, float]
    peak: float
    """over the size of one adapter"""


def _closing_seconds(
    model: Model, count: int, cohorts: Sequence[ModuleCohort], device: torch.device
) -> dict[str, float]:
    """Per module: the read, what methods take, and the certificate of `optimal`."""
    large = model.rank * count > model.width // 4
    result = closed_by(METHODS["optimal"], model.rank)(cohorts[0])
    published = GlobalModule(factors=result)

    def certified(cohort: ModuleCohort) -> object:
        return measure(cohort, published=published)

    work: dict[str, tuple[Callable[[ModuleCohort], object], Sequence[ModuleCohort]]] = {
        "read": (read_all, cohorts)
    }
    for name, method in METHODS.items():
        if not (large and name in ("flora_na", "florist")):
            work[name] = (closed_by(method, model.rank), cohorts)
    if not large:
        ready = [dataclasses.replace(c, grams=made_ahead(c)) for c in cohorts]
        for name in AHEAD:
            work[f"{name}, ahead"] = (closed_by(METHODS[name], model.rank), ready)
        work["certificate, ahead"] = (certified, ready)
    work["certificate"] = (certified, cohorts)
    seconds = dict.fromkeys(work, math.inf)
    # One after the other, and all of it again: a neighbour's burst must not hit one of them.
    for _ in range(3):
        for name, (close, members) in work.items():
            taken = whole_round(close, members, device, streams=name in ("read", "fedit"))
            seconds[name] = min(seconds[name], taken)
    return seconds


def _closing_aims(found: Sequence[_Closed]) -> list[Aim]:
    def over(rows: Sequence[_Closed], name: str, other: str = "read") -> str:
        return spread_of([r.seconds[name] / r.seconds[other] for r in rows if name in r.seconds])

    aims = [Aim("`fedit` over one read of the updates", "1.5 at most", over(found, "fedit"))]
    for count in sorted({row.count for row in found}):
        rows = [row for row in found if row.count == count]
        measured = over(rows, "optimal")
        if any("optimal, ahead" in row.seconds for row in rows):
            measured += f"; ahead {over(rows, 'optimal, ahead')}"
        most = "30" if count <= 10 else "20"
        aims.append(Aim(f"`optimal` over one read, U = {count}", f"{most} at most", measured))
    certified = over(found, "certificate", "optimal")
    certified += f"; ahead {over(found, 'certificate, ahead', 'optimal, ahead')}"
    peak = spread_of([row.peak for row in found])
    return [
        *aims,
        Aim("certificate over the close of `optimal`, in memory", "1 at most", certified),
        Aim(
            "peak of memory over the size of one adapter",
            "1 at most, Gram blocks beside it",
            f"{peak}, Gram blocks included",
        ),
    ]


def against_dense(model: Model, count: int, device: torch.device) -> Section:
    """The dense formulations on one module."""
    cohort = cohort_of(model.width, model.rank, count, device)
    centred = CentredCohort.of(cohort.members, cohort.weights_U)
    ideal = centred.ideal_norm()
    # The first optimiser of a process loads much of torch, which is not what is measured.
    dense_adam(cohort_of(64, 2, 2, device), steps=1)
    lines = [
        f"## Against the dense formulation: one module of {model.name}, U = {count}",
        "",
        "| | ms | relative error | times as fast |",
        "|---|---:|---:|---|",
    ]
    dense: dict[str, float] = {}
    work = {
        "Adam, dense": lambda: dense_adam(cohort),
        "dense SVD": lambda: dense_svd(cohort, model.rank),
    }
    for name, make in work.items():
        synchronise(device)
        begin = time.perf_counter()
        result = make()
        synchronise(device)
        dense[name] = time.perf_counter() - begin
        error = centred.error_of(result) / ideal
        lines.append(f"| {name} | {1e3 * dense[name]:,.0f} | {error:.6f} | |")
        print(lines[-1], flush=True)
    ready = dataclasses.replace(cohort, grams=made_ahead(cohort))
    measured = [(name, name, cohort) for name in METHODS]
    measured += [(f"{name}, ahead", name, ready) for name in AHEAD]
    faster: dict[str, float] = {}
    for label, name, members in measured:
        recipe = compose(METHODS[name])
        taken = best_time(
            lambda r=recipe, c=members: r.aggregate_module(c, rank=model.rank), device
        )
        result = recipe.aggregate_module(members, rank=model.rank).factors
        error = centred.error_of(result) / ideal
        rival = "Adam, dense" if name in ("fedit", "flora_na") else "dense SVD"
        faster[label] = dense[rival] / taken
        lines.append(
            f"| {label} | {1e3 * taken:.3g} | {error:.6f} | {faster[label]:,.0f} ({rival}) |"
        )
        print(lines[-1], flush=True)
    place = f"one module of {model.name}, U = {count}"
    rank_r = [name for name in METHODS if name not in ("fedit", "flora_na")]
    aims = [
        Aim(
            f"`flora_na` against Adam on the dense objective, {place}",
            "1,000 times as fast",
            f"{faster['flora_na']:,.0f}; ahead {faster['flora_na, ahead']:,.0f}",
        ),
        Aim(
            f"{', '.join(f'`{name}`' for name in rank_r)} against a dense SVD, {place}",
            "300 times as fast",
            f"{spread_of([faster[name] for name in rank_r])}; "
            f"`optimal` ahead {faster['optimal, ahead']:,.0f}",
        ),
    ]
    return [*lines, ""], aims


def on_device(device: torch.device, count: int) -> Section:
    """A whole round of LLaMA-2-7B on the accelerator, where the updates already are."""
    modules = [cohort_of(4096, 16, count, device) for _ in range(4)]
    recipe = compose(METHODS["optimal"])

    def close() -> None:
        for cohort in modules:
            recipe.aggregate_module(cohort, rank=16)

    close()
    taken = best_time(close, device) * LLAMA.modules / len(modules)
    size = 8 * 4096 * 16 * count * LLAMA.modules
    big = torch.empty(2**28, device=device)
    bandwidth = big.numel() * 4 / best_time(lambda: big.sum(), device, least=10)
    aim = Aim(
        f"`optimal` on all modules of LLaMA-2-7B, U = {count}, updates on the device",
        "100 ms at most",
        f"{1e3 * taken:.4g} ms",
    )
    lines = [
        "## Accelerator",
        "",
        (
            f"{torch.cuda.get_device_name(device)}: `optimal` on all {LLAMA.modules} modules of "
            f"LLaMA-2-7B, U = {count}, updates on the device: {1e3 * taken:.4g} ms. One read of "
            f"them at {bandwidth / 1e9:,.0f} GB/s is {1e3 * size / bandwidth:.3g} ms: "
            f"{taken * bandwidth / size:.3g} times the limit."
        ),
        "",
    ]
    return lines, [aim]


# --- the page ------------------------------------------------------------------------------------


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{processor()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# Closing a round",
        "",
        f"Measured by `python benchmarks/aggregation.py` on {machine(device)}. {intro}",
        "",
    ]
    quick = given.quick
    rows = [(ROBERTA, 10, 48), (LLAMA, 10, 16)]
    if not quick:
        rows = [(ROBERTA, 10, 48), (ROBERTA, 100, 48), (LLAMA, 10, 64), (LLAMA, 100, 16)]
    recipes = {name: compose(METHODS[name]) for name in ("fedit", "optimal")}
    sections = [
        closing(rows, device, threads=given.threads),
        against_dense(ROBERTA if quick else LLAMA, 10, device),
        randomised_excess(device, quick=quick),
        (growth(recipes, device, quick=quick, plot=given.out.with_suffix(".svg")), []),
    ]
    if device.type == "cuda":
        sections.append(on_device(device, 10 if quick else 100))
    else:
        rows = rows[:1] if quick else [(ROBERTA, 10, 48), (LLAMA, 10, 32), (LLAMA, 100, 8)]
        sections.append(from_files(recipes, rows))
        note = "No accelerator was used: run with `--device cuda` for its rows."
        sections.append(([*streamed(recipes, quick=quick), note], []))
    lines += [
        "## What was aimed at",
        "",
        "Ratios of the tables below, over all their rows.",
        "",
        "| | aimed at | measured |",
        "|---|---|---|",
        *(
            f"| {aim.what} | {aim.aimed_at} | {aim.measured} |"
            for _, aims in sections
            for aim in aims
        ),
        "",
    ]
    for section, _ in sections:
        lines += section
    given.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
