"""Whole rounds from files, as the server closes and certifies them, and a cohort of a thousand."""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from aggregations.aims import Aim, Section, spread_of
from aggregations.cohorts import LLAMA, ROBERTA, Model, best_time, cohort_of, peak_above
from safetensors import safe_open
from safetensors.torch import save_file

from aggregator_service.aggregation.certify import certify
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.driver import Contribution, aggregate
from aggregator_service.aggregation.gram_blocks import RoundGrams
from aggregator_service.aggregation.parallel import in_order
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Factor, lora_key

__all__ = ["from_files", "streamed"]

SCALING = 2.0
"""lora_alpha / r, as usual"""


def from_files(recipes: Mapping[str, Recipe], rows: Sequence[tuple[Model, int, int]]) -> Section:
    """Closing and certifying through the driver."""
    certified: dict[str, list[float]] = {"": [], ", ahead": []}
    names = ["fedit", "optimal", "optimal, ahead", "certificate", "certificate, ahead"]
    lines = [
        "## From files",
        "",
        (
            "The whole way through `driver.aggregate`: updates mapped from safetensors files in "
            "the page cache, checked for NaN, combined, rounded, written and made durable. "
            "Milliseconds per module; *read* sums every tensor of every file once, *certificate* "
            "is `certify` on what `optimal` published. *ahead*: with Gram blocks made while "
            "updates arrived."
        ),
        "",
        "| model | U | modules | read | " + " | ".join(names) + " |",
        "|---|" + " ---: |" * (len(names) + 3),
    ]
    for model, count, modules in rows:
        with tempfile.TemporaryDirectory() as folder:
            times = _times(recipes, Path(folder), model, count, modules)
        cells = [
            f"{1e3 * times[n]:.3g} ({times[n] / times['read']:.3g}x)" if n in times else "–"
            for n in names
        ]
        lines.append(
            f"| {model.name} | {count} | {modules} | {1e3 * times['read']:.3g} | "
            + " | ".join(cells)
            + " |"
        )
        print(lines[-1], flush=True)
        for when, ratios in certified.items():
            if f"optimal{when}" in times:
                ratios.append(times[f"certificate{when}"] / times[f"optimal{when}"])
    aim = Aim(
        "certificate over the close of `optimal`, from files",
        "1 at most",
        f"{spread_of(certified[''])}; ahead {spread_of(certified[', ahead'])}",
    )
    return [*lines, ""], [aim]


def _times(
    recipes: Mapping[str, Recipe], folder: Path, model: Model, count: int, modules: int
) -> dict[str, float]:
    """Seconds per module."""
    updates, start = _written(folder, model, count, modules)
    before = RoundContext(start=StoredAdapter(path=start, scaling=SCALING))
    out = folder / "out.safetensors"

    def close(name: str, context: RoundContext) -> None:
        aggregate(updates, recipes[name], output=out, context=context, output_scaling=SCALING)

    def certified(context: RoundContext) -> None:
        published = StoredAdapter(path=out, scaling=SCALING)
        certify(updates, recipes["optimal"], published=published, context=context)

    work: dict[str, Callable[[], object]] = {
        "read": functools.partial(_read, [u.path for u in updates]),
        "fedit": functools.partial(close, "fedit", before),
        "optimal": functools.partial(close, "optimal", before),
        "certificate": functools.partial(certified, before),
    }
    grams = RoundGrams(before.start)
    grams.add(updates)
    if 4 * count * model.rank <= model.width:
        ready = replace(before, grams=grams)
        work["optimal, ahead"] = functools.partial(close, "optimal", ready)
        work["certificate, ahead"] = functools.partial(certified, ready)
    cpu = torch.device("cpu")
    best = dict.fromkeys(work, math.inf)
    for _ in range(3):
        for name, once in work.items():
            best[name] = min(best[name], best_time(once, cpu, seconds=0.5, least=2) / modules)
    return best


def _written(
    folder: Path, model: Model, count: int, modules: int
) -> tuple[list[Contribution], Path]:
    """Updates near a common start, and that."""
    cohort = cohort_of(model.width, model.rank, count, torch.device("cpu"))
    assert cohort.start is not None
    paths = []
    for name, factors in [
        ("start", cohort.start.factors),
        *((f"{u:05}", f) for u, f in enumerate(cohort.members)),
    ]:
        paths.append(folder / f"{name}.safetensors")
        save_file(_tensors(factors, modules), paths[-1], metadata={"format": "pt"})
    updates = [
        Contribution(worker=p.stem, weight=float(u + 1), path=p, scaling=SCALING)
        for u, p in enumerate(paths[1:])
    ]
    return updates, paths[0]


def _tensors(factors: LoraFactors, modules: int) -> dict[str, torch.Tensor]:
    tensors = {}
    for i in range(modules):
        module = f"layers.{i:02}.q_proj"
        tensors[lora_key(module, Factor.LORA_A)] = factors.a_RK.clone()
        tensors[lora_key(module, Factor.LORA_B)] = factors.b_DR / SCALING
    return tensors


def _read(paths: Sequence[Path]) -> None:
    def one(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                file.get_tensor(key).sum()

    for _ in in_order(one, paths, device="cpu"):
        pass


def streamed(recipes: Mapping[str, Recipe], *, quick: bool) -> list[str]:
    """A cohort of files through the driver, one module in memory at a time."""
    count = 100 if quick else 1000
    lines = [
        "## Streamed from files",
        "",
        (
            f"{count:,} updates as safetensors files through `driver.aggregate`, and the "
            "certificate of what `optimal` made of them; the files are in the page cache. Seconds "
            "per module; peak of memory above the files' headers, in MB, mapped files included."
        ),
        "",
        "| model | modules measured | what | s per module | MB | updates of one module, MB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    cpu = torch.device("cpu")
    for model, modules in ((ROBERTA, 2), (LLAMA, 1)):
        with tempfile.TemporaryDirectory() as folder:
            updates, start = _written(Path(folder), model, count, modules)
            context = RoundContext(start=StoredAdapter(path=start, scaling=SCALING))
            out = Path(folder, "out.safetensors")
            published = StoredAdapter(path=out, scaling=1.0)
            work: dict[str, Callable[[], object]] = {
                name: functools.partial(
                    aggregate, updates, recipes[name], output=out, context=context
                )
                for name in ("fedit", "optimal")
            }
            work["certificate"] = functools.partial(
                certify, updates, recipes["optimal"], published=published, context=context
            )
            for name, once in work.items():
                spent = [math.inf]

                def timed(once: Callable[[], object] = once, spent: list[float] = spent) -> None:
                    begin = time.perf_counter()
                    once()
                    spent[0] = time.perf_counter() - begin

                peak = peak_above(timed, cpu)
                size = 8 * model.width * model.rank * count / 1e6
                lines.append(
                    f"| {model.name} | {modules} | {name} | {spent[0] / modules:.3g} | "
                    f"{peak:.4g} | {size:.4g} |"
                )
                print(lines[-1], flush=True)
    return [*lines, ""]
