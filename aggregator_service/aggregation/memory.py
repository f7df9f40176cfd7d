"""How many modules of a cohort may be combined, or measured, at a time in an amount of memory.

Updates lie in files and are mapped; what takes memory, the machine's or a GPU's, is one module of
all of them in float64 and what a recipe makes of it. Most recipes go through the updates one by
one. Some hold them side by side, R wide with R the sum of the ranks, and R x R matrices of them:
with a thousand clients that is the larger part by far, and the reason why some methods end where
others do not.

    streaming recipe     8 R (D + K) bytes
    stacking recipe      8 (4 R (D + K) + 3 R^2) bytes          per module and thread

A certificate stacks too where its figures are exact, which R bounds; it is never refused.

Shape suffixes: R sum of the ranks, K in_features, D out_features.
"""

from __future__ import annotations

import torch

from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.composition import Recipe
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import is_estimated
from fedlora.process_limits import memory_bytes

__all__ = ["measured_at_a_time", "modules_at_a_time"]

_NUMBER_BYTES = 8
_STACKS, _CORES = 4, 3
"""copies of the updates, and R x R matrices, that a stacking recipe holds at once"""


def modules_at_a_time(
    recipe: Recipe,
    cohort: CohortFiles,
    *,
    budget: int,
    threads: int,
    device: torch.device | str = "cpu",
) -> int:
    """At most `threads`, and as many as fit.

    Args:
        recipe: what combines them.
        cohort: the updates.
        budget: bytes; 0 for half of what the machine, or its container, has, or of
            what is free on a GPU.
        threads: 0 for as many as torch would use.
        device: where the modules are combined.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD where not even one module fits.
    """
    allowed = budget or _half(torch.device(device))
    needed, widest = max(
        (_bytes(cohort, module, stacks=recipe.stacks), module) for module in cohort.modules
    )
    if needed > allowed:
        ranks = sum(cohort.ranks)
        held = "matrices of that size" if recipe.stacks else "the updates"
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"{recipe.method.name} holds {held} in memory: ranks add up to {ranks:,} over "
            f"{len(cohort.files):,} updates, so module {widest!r} takes {needed / 1e9:.3g} GB, and "
            f"{allowed / 1e9:.3g} GB are allowed",
            hint="Raise server.memory_bytes, let fewer workers take part in a round, or use fedit "
            "or optimal, which go through the updates one by one",
        )
    return min(threads or torch.get_num_threads(), allowed // needed)


def measured_at_a_time(
    recipe: Recipe,
    cohort: CohortFiles,
    *,
    rank: int,
    budget: int,
    threads: int,
    device: torch.device | str = "cpu",
) -> int:
    """As `modules_at_a_time`, for the certificate of what was published at a rank; 1 at least."""

    def needed(module: str) -> int:
        is_large = is_estimated(sum(cohort.ranks), *cohort.features(module), rank=rank)
        # A method with an ideal of its own has it in factors, whatever their size.
        return _bytes(cohort, module, stacks=recipe.stacks or not is_large)

    allowed = budget or _half(torch.device(device))
    fitting = allowed // max(needed(module) for module in cohort.modules)
    return max(1, min(threads or torch.get_num_threads(), fitting))


def _half(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return memory_bytes() // 2


def _bytes(cohort: CohortFiles, module: str, *, stacks: bool) -> int:
    ranks = sum(cohort.ranks)
    updates = ranks * sum(cohort.features(module))
    if not stacks:
        return _NUMBER_BYTES * updates
    return _NUMBER_BYTES * (_STACKS * updates + _CORES * ranks**2)
