"""What plug-ins send with updates, summed, and what they make of it for the next version.

One tensor at a time: a cohort's extras are as large as its updates. Sums are taken in float64, in
the order of the workers' names, over the updates that count.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.state_file import StateReader, StateWriter
from fedlora.adapters.names import extra_key
from fedlora.plugins import Plugin

__all__ = ["served_extras"]


def served_extras(
    plugins: tuple[Plugin, ...],
    cohort: CohortFiles,
    held: StateReader,
    kept: StateWriter,
    *,
    num_workers: int,
) -> Iterator[tuple[str, Tensor]]:
    """The extras to publish, key by key; what the plug-ins remember goes to `kept`.

    Args:
        plugins: of the run.
        cohort: updates that hold what the plug-ins send.
        held: what they remembered of the round before.
        kept: what they will remember.
        num_workers: parties that the run has ever known.
    """
    for plugin in plugins:
        traits = plugin.traits
        for key in sorted(cohort.files[0].shapes) if traits.has_extras else ():
            sums = {
                name: _sum(cohort, extra_key(f"{plugin.name}/{name}", key)) for name in traits.sent
            }
            owner = extra_key(plugin.name, key)
            served = plugin.serve(sums, held.of(owner), num_workers=num_workers)
            kept.put(owner, served.state)
            for name in traits.given:
                yield extra_key(f"{plugin.name}/{name}", key), served.given[name]


def _sum(cohort: CohortFiles, key: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for file in cohort.files:
        total = total + file.tensor(key)
    return total
