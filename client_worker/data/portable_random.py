"""Random draws that come out alike on every Python and every machine.

Workers split one file each for itself and must arrive at the same parts. Python promises that
`random.Random(seed).random()` never changes, but not the algorithms above it; those are here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["PortableRandom"]

T = TypeVar("T")


class PortableRandom:
    """Draws from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - an experiment, no secret

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher and Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = int(self._random.random() * (i + 1))
            result[i], result[j] = result[j], result[i]
        return result

    def dirichlet(self, alpha: float, size: int) -> list[float]:
        """One draw of the symmetric Dirichlet distribution of concentration `alpha`.

        Gamma variates divided by their sum, in logarithms: for a small alpha all of them may
        lie below the smallest floating-point number.
        """
        logs = [self._log_gamma_variate(alpha) for _ in range(size)]
        top = max(logs)
        weights = [math.exp(value - top) for value in logs]
        total = math.fsum(weights)
        return [w / total for w in weights]

    def _log_gamma_variate(self, shape: float) -> float:
        """Logarithm of a Gamma(shape, 1) variate.

        Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3),
        2000; section 6 for shape < 1: Gamma(a) = Gamma(a + 1) * U^(1/a).
        """
        if shape < 1:
            return self._log_gamma_variate(shape + 1) + math.log(self._uniform()) / shape
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self._normal()
            v = (1 + c * x) ** 3
            if v > 0 and math.log(self._uniform()) < x * x / 2 + d - d * v + d * math.log(v):
                return math.log(d) + math.log(v)

    def _normal(self) -> float:
        """Box and Muller 1958."""
        radius = math.sqrt(-2 * math.log(self._uniform()))
        return radius * math.cos(2 * math.pi * self._random.random())

    def _uniform(self) -> float:
        """In (0, 1]."""
        return 1 - self._random.random()
