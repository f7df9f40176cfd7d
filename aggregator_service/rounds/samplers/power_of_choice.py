"""Of some candidates, those with the highest loss.

Paper   Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and
        Power-of-Choice Selection Strategies", 2020, arXiv:2010.01243, section 3.
Rule    d candidates are drawn by examples; the `count` with the highest loss among them are taken.
Bias    towards workers that the model does not fit, the more the larger d is. d = `count` is
        by_examples.

Readings. The paper asks the candidates for their loss before every round; here it is the last one
that a worker has reported. One that has never reported has a higher loss than any, and is tried
first. Among equals the earlier draw is taken.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.rounds.samplers.base import Candidate
from aggregator_service.rounds.samplers.draw import draw_by_examples
from fedlora.errors import invalid_argument

__all__ = ["PowerOfChoice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOfChoice:
    """Of some candidates, those with the highest loss."""

    candidates: int = 0
    """d, drawn by examples; 0 for twice as many as are taken"""

    name: ClassVar[str] = "power_of_choice"

    def __post_init__(self) -> None:
        if self.candidates < 0:
            raise invalid_argument(
                f"power_of_choice: candidates must not be negative, got {self.candidates}"
            )

    def select(
        self, candidates: Sequence[Candidate], count: int, generator: random.Random
    ) -> Sequence[str]:
        """See `base.ClientSampler`."""
        wanted = max(count, self.candidates or 2 * count)
        drawn = draw_by_examples(candidates, min(wanted, len(candidates)), generator)
        unknown = [c.name for c in drawn if c.loss is None]
        known = [(c.loss, c.name) for c in drawn if c.loss is not None]
        # Sorting keeps the order of the draw among equals.
        highest = unknown + [name for _, name in sorted(known, key=lambda item: -item[0])]
        return highest[:count]
