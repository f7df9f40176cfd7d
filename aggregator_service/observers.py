"""Who is told of what has become durable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aggregator_service.rounds.state import RunState
from fedlora.runs.report import RoundReport, RunEvent

__all__ = ["Observer", "Observers"]


class Observer(Protocol):
    """Told of what has become durable; must not block and must not fail the run."""

    def committed(
        self, state: RunState, events: Sequence[RunEvent], reports: Sequence[RoundReport]
    ) -> None:
        """New stored events of a run, and the rounds that are complete or certified by them."""
        ...


class Observers:
    """Several observers, told one after the other.

    Args:
        observers: in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def committed(
        self, state: RunState, events: Sequence[RunEvent], reports: Sequence[RoundReport]
    ) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.committed(state, events, reports)
