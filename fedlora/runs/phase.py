"""Where a run stands."""

from __future__ import annotations

import enum

__all__ = [
    "RunPhase",
]


class RunPhase(enum.StrEnum):
    """Where a run stands."""

    CREATED = "created"
    WAITING = "waiting"
    INITIALIZING = "initializing"
    TRAINING = "training"
    AGGREGATING = "aggregating"
    REFINING = "refining"
    EVALUATING = "evaluating"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Nothing happens after this phase."""
        return self in (RunPhase.COMPLETED, RunPhase.STOPPED, RunPhase.FAILED)
