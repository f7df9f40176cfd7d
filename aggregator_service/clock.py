"""The run's clock: it counts only while a server drives the run, and never jumps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["RunClock"]


@dataclass(slots=True)
class RunClock:
    """Seconds that a run has been driven, over all the servers that drove it.

    Args:
        base: what the clock showed when the state was last stored.
        monotonic: source of time, replaced in tests.
    """

    base: float = 0.0
    monotonic: Callable[[], float] = time.monotonic
    _origin: float = field(init=False)

    def __post_init__(self) -> None:
        self._origin = self.monotonic()

    def now(self) -> float:
        """The run's time in seconds."""
        return self.base + (self.monotonic() - self._origin)
