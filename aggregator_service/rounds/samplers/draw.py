"""Draws without replacement in proportion to the number of examples."""

from __future__ import annotations

import random
from collections.abc import Sequence

from aggregator_service.rounds.samplers.base import Candidate

__all__ = ["draw_by_examples"]


def draw_by_examples(
    candidates: Sequence[Candidate], count: int, generator: random.Random
) -> list[Candidate]:
    """`count` of the candidates, each draw in proportion to the examples among those that are left.

    A worker that has never reported counts as having as many as the others have on average.
    """
    examples = {c.name: c.num_examples for c in candidates}
    known = [n for n in examples.values() if n > 0]
    mean = sum(known) / len(known) if known else 1.0
    left, drawn = list(candidates), list[Candidate]()
    while len(drawn) < count:
        (one,) = generator.choices(left, weights=[examples[c.name] or mean for c in left])
        left.remove(one)
        drawn.append(one)
    return drawn
