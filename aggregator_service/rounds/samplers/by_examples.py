"""The more data a worker has, the likelier it is taken.

Rule    workers are drawn without replacement, each draw in proportion to the examples among those
        that are left.
Bias    with the weights n_u on top, workers with much data count twice over: take
        `weighting.name = "uniform"` for the mean over examples.

A worker that has never reported counts as having as many examples as the others have on average.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.rounds.samplers.base import Candidate
from aggregator_service.rounds.samplers.draw import draw_by_examples

__all__ = ["ByExamples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByExamples:
    """The more data a worker has, the likelier it is taken."""

    name: ClassVar[str] = "by_examples"

    def select(
        self, candidates: Sequence[Candidate], count: int, generator: random.Random
    ) -> Sequence[str]:
        """See `base.ClientSampler`."""
        return [c.name for c in draw_by_examples(candidates, count, generator)]
