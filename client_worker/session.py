"""The life of a worker process: states, events, and the table that joins them.

Rules:

1. A pair that is not in the table is a mistake of ours: `IllegalEventError`, and nothing changes.
2. STOPPING and CUT_OFF are possible wherever the worker is registered. After the first it still
   tells the server that it goes; after the second there is nobody to tell.
3. A new session token changes no state. A server that has forgotten a worker is told again who it
   is (`client_worker.membership`), and the work in hand goes on. Only if the run it then gets is
   another one does the worker load again.

docs/worker.md shows `mermaid()`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

__all__ = ["TABLE", "Event", "IllegalEventError", "Session", "State", "mermaid"]


class State(enum.Enum):
    """Where a worker stands."""

    DIALLING = "dialling"
    """not registered yet"""
    REGISTERED = "registered"
    """knows its run, rank and data slot; heartbeats have begun"""
    LOADING = "loading"
    """base model, adapter and data come into memory"""
    READY = "ready"
    """waits for a task"""
    TRAINING = "training"
    SUBMITTING = "submitting"
    """has an update and is not done until it is acknowledged"""
    EVALUATING = "evaluating"
    LEAVING = "leaving"
    GONE = "gone"


class Event(enum.Enum):
    """What happens to a worker."""

    REGISTERED = "registered"
    LOADING_BEGAN = "loading began"
    CONFIRMED = "adapter confirmed"
    RUN_CHANGED = "run changed"
    """registered again, and the run, rank or data slot is another"""
    TRAIN_GIVEN = "task: train"
    UPDATE_AT_HAND = "task: initialize, or trained before a restart"
    EVALUATE_GIVEN = "task: evaluate"
    TRAINED = "trained"
    ACKNOWLEDGED = "acknowledged"
    REPORTED = "scores reported"
    DROPPED = "no longer counts"
    """the server asked to abandon the task, or refused what came of it as too late"""
    STOPPING = "run over, signal or error"
    LEFT = "left"
    CUT_OFF = "fenced or server unreachable"


class IllegalEventError(Exception):
    """An event that cannot happen in a state: a mistake of ours."""


_S, _E = State, Event

TABLE: Mapping[tuple[State, Event], State] = {
    (_S.DIALLING, _E.REGISTERED): _S.REGISTERED,
    (_S.DIALLING, _E.STOPPING): _S.GONE,
    (_S.DIALLING, _E.CUT_OFF): _S.GONE,
    (_S.REGISTERED, _E.LOADING_BEGAN): _S.LOADING,
    (_S.REGISTERED, _E.STOPPING): _S.LEAVING,
    (_S.REGISTERED, _E.CUT_OFF): _S.GONE,
    (_S.LOADING, _E.CONFIRMED): _S.READY,
    (_S.LOADING, _E.RUN_CHANGED): _S.REGISTERED,
    (_S.LOADING, _E.STOPPING): _S.LEAVING,
    (_S.LOADING, _E.CUT_OFF): _S.GONE,
    (_S.READY, _E.TRAIN_GIVEN): _S.TRAINING,
    (_S.READY, _E.UPDATE_AT_HAND): _S.SUBMITTING,
    (_S.READY, _E.EVALUATE_GIVEN): _S.EVALUATING,
    (_S.READY, _E.RUN_CHANGED): _S.REGISTERED,
    (_S.READY, _E.STOPPING): _S.LEAVING,
    (_S.READY, _E.CUT_OFF): _S.GONE,
    (_S.TRAINING, _E.TRAINED): _S.SUBMITTING,
    (_S.TRAINING, _E.DROPPED): _S.READY,
    (_S.TRAINING, _E.STOPPING): _S.LEAVING,
    (_S.TRAINING, _E.CUT_OFF): _S.GONE,
    (_S.SUBMITTING, _E.ACKNOWLEDGED): _S.READY,
    (_S.SUBMITTING, _E.DROPPED): _S.READY,
    (_S.SUBMITTING, _E.STOPPING): _S.LEAVING,
    (_S.SUBMITTING, _E.CUT_OFF): _S.GONE,
    (_S.EVALUATING, _E.REPORTED): _S.READY,
    (_S.EVALUATING, _E.DROPPED): _S.READY,
    (_S.EVALUATING, _E.STOPPING): _S.LEAVING,
    (_S.EVALUATING, _E.CUT_OFF): _S.GONE,
    (_S.LEAVING, _E.LEFT): _S.GONE,
}


class Session:
    """One walk through the table, from DIALLING to GONE."""

    def __init__(self) -> None:
        self._state = State.DIALLING

    @property
    def state(self) -> State:
        """Where the worker stands."""
        return self._state

    def handle(self, event: Event) -> State:
        """Goes on to the next state and returns it; `IllegalEventError` if there is none."""
        following = TABLE.get((self._state, event))
        if following is None:
            possible = ", ".join(sorted(e.name for s, e in TABLE if s is self._state)) or "nothing"
            raise IllegalEventError(
                f"{event.name} cannot happen to a worker that is {self._state.name}; "
                f"possible: {possible}"
            )
        self._state = following
        return following


def mermaid() -> str:
    """The table as a Mermaid state diagram; events with one source and target share an arrow."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, event), following in TABLE.items():
        arrows.setdefault((state, following), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {State.DIALLING.name}"]
    lines += [
        f"    {a.name} --> {b.name}: {' / '.join(events).replace(':', '')}"
        for (a, b), events in arrows.items()
    ]
    return "\n".join([*lines, f"    {State.GONE.name} --> [*]"])
