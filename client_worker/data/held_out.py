"""Sets a worker's own rows apart for scoring, the same ones every time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from client_worker.data.portable_random import PortableRandom
from fedlora.runs.seeds import derive_seed

__all__ = ["split_held_out"]


def split_held_out(
    keys: Sequence[str], fraction: float, *, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training rows and held-out rows, both ascending.

    Each label gives its share; what rounding leaves over goes to the labels with the largest
    remainders. At least one row is held out if `fraction` is positive and there are two, and at
    least one is left to train on.

    Args:
        keys: the label of each row; all alike where there are none.
        fraction: share to hold out, in [0, 1).
        seed: of the choice.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    wanted = 0
    if fraction > 0 and len(keys) > 1:
        wanted = min(max(1, round(fraction * len(keys))), len(keys) - 1)
    quota = {name: wanted * len(rows) / len(keys) for name, rows in groups.items()}
    counts = {name: math.floor(q) for name, q in quota.items()}
    spare = wanted - sum(counts.values())
    for name in sorted(groups, key=lambda n: (counts[n] - quota[n], n))[:spare]:
        counts[name] += 1
    held_out: set[int] = set()
    for name, rows in sorted(groups.items()):
        rng = PortableRandom(derive_seed(seed, "held-out", name))
        held_out.update(rng.shuffled(rows)[: counts[name]])
    train = tuple(row for row in range(len(keys)) if row not in held_out)
    return train, tuple(sorted(held_out))
