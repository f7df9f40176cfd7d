"""When a process that has died is started again, and when not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedlora.exit_codes import ExitCode

__all__ = ["Backoff", "is_worth_restarting"]

_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 30.0

# A process that has lived this long was healthy; its next death is counted as a first one.
_HEALTHY_SECONDS = 60.0

_MOST_RESTARTS = 4

# Workers that died of one cause, such as a server that went away, do not all come back at once.
_LEAST_SHARE_OF_DELAY = 0.5

_HOPELESS = {ExitCode.USAGE, ExitCode.REFUSED, ExitCode.FENCED, ExitCode.DEVICE}


def is_worth_restarting(code: int) -> bool:
    """Whether the same process might fare better; not with a wrong configuration or device."""
    return code not in _HOPELESS


@dataclass(slots=True)
class Backoff:
    """Growing pauses between restarts of one process.

    Args:
        most: restarts in a row without a healthy life between; 0 for no limit.
        clock: monotonic seconds, replaced in tests.
        draw: a number from 0 to 1, how much of the pause that may be left out is kept.
    """

    most: int = _MOST_RESTARTS
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    num_restarts: int = 0
    """in a row"""
    _resume_at: float | None = None

    def next_delay(self, lifetime_seconds: float) -> float | None:
        """Begins a pause after a death and returns its seconds; None if there were too many.

        Args:
            lifetime_seconds: how long the process had lived.
        """
        if lifetime_seconds >= _HEALTHY_SECONDS:
            self.num_restarts = 0
        if self.most and self.num_restarts >= self.most:
            return None
        longest = min(_FIRST_DELAY_SECONDS * 2.0**self.num_restarts, _LONGEST_DELAY_SECONDS)
        delay = longest * (_LEAST_SHARE_OF_DELAY + (1.0 - _LEAST_SHARE_OF_DELAY) * self.draw())
        self.num_restarts += 1
        self._resume_at = self.clock() + delay
        return delay

    @property
    def is_waiting(self) -> bool:
        """A pause was begun and the process not yet started again."""
        return self._resume_at is not None

    @property
    def is_over(self) -> bool:
        """The pause has passed."""
        return self._resume_at is not None and self.clock() >= self._resume_at

    def begin(self) -> None:
        """The process is being started again."""
        self._resume_at = None
