"""Every subset of the workers is as likely as any other.

Source  McMahan, Moore, Ramage, Hampson, Agueera y Arcas, "Communication-Efficient Learning of Deep
        Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629, algorithm 1.
Rule    S of `count` workers, drawn without replacement.
Bias    none: with the weights n_u the mean over draws is the step of all workers, but for the
        normalisation of the weights over S.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.rounds.samplers.base import Candidate

__all__ = ["Uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Every subset of the workers is as likely as any other."""

    name: ClassVar[str] = "uniform"

    def select(
        self, candidates: Sequence[Candidate], count: int, generator: random.Random
    ) -> Sequence[str]:
        """See `base.ClientSampler`."""
        return generator.sample([c.name for c in candidates], count)
