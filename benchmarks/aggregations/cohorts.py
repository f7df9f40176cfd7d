"""Cohorts of one size, and how long and how much memory something takes on them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.parallel import in_order
from fedlora.adapters.factors import LoraFactors

__all__ = [
    "LLAMA",
    "ROBERTA",
    "Model",
    "best_time",
    "closed",
    "cohort_of",
    "made_ahead",
    "peak_above",
    "read_all",
    "round_of",
    "round_of_size",
    "synchronise",
    "unrelated_of",
    "whole_round",
]


@dataclass(frozen=True)
class Model:
    """A model's adapted modules, all of one shape."""

    name: str
    width: int
    rank: int
    modules: int


ROBERTA = Model("RoBERTa-large", 1024, 8, 48)
LLAMA = Model("LLaMA-2-7B", 4096, 16, 64)


def start_of(width: int, rank: int, device: torch.device) -> LoraFactors:
    generator = torch.Generator().manual_seed(width + rank)
    a = torch.randn(rank, width, generator=generator) / width**0.5
    b = torch.randn(width, rank, generator=generator) / width**0.5
    return LoraFactors(a.to(device), b.to(device))


def cohort_of(width: int, rank: int, count: int, device: torch.device) -> ModuleCohort:
    generator = torch.Generator().manual_seed(count)
    origin = start_of(width, rank, torch.device("cpu"))
    members = []
    for _ in range(count):
        scale = float(torch.randn(1, generator=generator).mul(0.5).exp())
        shift_a = torch.randn(rank, width, generator=generator) / width**0.5
        shift_b = torch.randn(width, rank, generator=generator) / width**0.5
        a, b = (origin.a_RK + 0.3 * shift_a) * scale, (origin.b_DR + 0.3 * shift_b) / scale
        members.append(LoraFactors(a.to(device), b.to(device)))
    weights_U = torch.arange(1, count + 1, dtype=torch.float64)
    start = GlobalModule(factors=start_of(width, rank, device))
    return ModuleCohort.of(members, weights_U, start=start)


def unrelated_of(width: int, rank: int, count: int, device: torch.device) -> ModuleCohort:
    """Clients with nothing in common."""
    generator = torch.Generator().manual_seed(count)
    members = []
    for _ in range(count):
        a = torch.randn(rank, width, generator=generator) / width**0.5
        b = torch.randn(width, rank, generator=generator) / width**0.5
        members.append(LoraFactors(a.to(device), b.to(device)))
    return ModuleCohort.of(members, torch.ones(count, dtype=torch.float64))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_time(
    work: Callable[[], object], device: torch.device, *, seconds: float = 1.0, least: int = 3
) -> float:
    """Seconds of the fastest of at least `least` calls, for about `seconds`."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < least or (spent < seconds and calls < 50):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        taken = time.perf_counter() - begin
        best, spent, calls = min(best, taken), spent + taken, calls + 1
        if taken > 10:
            break
    return best


def read_all(cohort: ModuleCohort) -> list[Tensor]:
    return [part.sum() for f in cohort.members for part in (f.a_RK, f.b_DR)]


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 0


def peak_above(work: Callable[[], object], device: torch.device) -> float:
    """MB above what was held before; NaN where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    # What the allocator keeps for later would hide what is taken.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1e6


def round_of(model: Model, count: int, modules: int, device: torch.device) -> list[ModuleCohort]:
    """A round's modules, each in memory of its own: together far more than any cache."""
    first = cohort_of(model.width, model.rank, count, device)
    return [first] + [
        ModuleCohort.of(
            [LoraFactors(f.a_RK.clone(), f.b_DR.clone()) for f in first.members],
            first.weights_U,
            start=first.start,
        )
        for _ in range(modules - 1)
    ]


def made_ahead(cohort: ModuleCohort) -> ClientGrams:
    """What `gram_blocks` has ready at the close."""
    start = cohort.start
    assert start is not None
    return ClientGrams.near(cohort.members, start.factors)


def whole_round(
    work: Callable[[ModuleCohort], object],
    cohorts: Sequence[ModuleCohort],
    device: torch.device,
    *,
    streams: bool = False,
) -> float:
    """Seconds per module of a pass over the round, as the aggregator makes it.

    Args:
        work: on one module.
        cohorts: the modules.
        device: where they are.
        streams: whether the work is a few calls over the updates, and no Gram matrix.
    """
    size = size_of(cohorts[0]) if streams else None

    def once() -> None:
        for _ in in_order(lambda cohort: work(cohort) and None, cohorts, device=device, size=size):
            pass

    return best_time(once, device, seconds=0.7, least=2) / len(cohorts)


def round_of_size(
    width: int, rank: int, count: int, layers: int, device: torch.device
) -> list[ModuleCohort]:
    """Layers of that width, of as many updates."""
    return [cohort_of(width, rank, count, device) for _ in range(layers)]


def closed(
    recipe: Recipe, cohorts: Sequence[ModuleCohort], rank: int, device: torch.device
) -> None:
    """Closes a round, as the aggregator does."""
    size = None if recipe.method.reads_grams else size_of(cohorts[0])

    def work(cohort: ModuleCohort) -> None:
        recipe.aggregate_module(cohort, rank=rank)

    for _ in in_order(work, cohorts, device=device, size=size):
        pass


def size_of(cohort: ModuleCohort) -> int:
    """Numbers in one module of all updates."""
    return sum(f.a_RK.numel() + f.b_DR.numel() for f in cohort.members)
