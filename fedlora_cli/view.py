"""What is to be seen of a run: events in, the present state of rounds and workers out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlora.runs.report import EventType, RoundReport, RunEvent

__all__ = ["RunView", "WorkerView", "notice_of"]


@dataclass(slots=True)
class WorkerView:
    """A worker as its last event left it."""

    name: str
    activity: str = "starting"
    completed_steps: int = 0
    total_steps: int = 0
    loss: float | None = None


@dataclass(slots=True)
class RunView:
    """The present state of a run, put together from its events."""

    num_rounds: int
    phase: str = "starting"
    round: int = 0
    last_sequence: int = 0
    workers: dict[str, WorkerView] = field(default_factory=dict)
    rounds: dict[int, RoundReport] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Nothing more will happen, except that workers leave."""
        return self.phase in ("completed", "stopped", "failed")

    def worker(self, name: str) -> WorkerView:
        """The worker of that name, new if it is the first time it is heard of."""
        return self.workers.setdefault(name, WorkerView(name))

    def set_rounds(self, reports: Sequence[RoundReport]) -> None:
        """Takes the completed rounds."""
        self.rounds |= {r.round: r for r in reports}

    def apply(self, event: RunEvent) -> None:
        """Takes one event; one that was taken before changes nothing."""
        if event.sequence:
            if event.sequence <= self.last_sequence:
                return
            self.last_sequence = event.sequence
        if event.round:
            self.round = event.round
        if event.worker:
            self._apply_to_worker(self.worker(event.worker), event)
        else:
            self._apply_to_run(event)

    def _apply_to_worker(self, worker: WorkerView, event: RunEvent) -> None:
        if event.type is EventType.WORKER_PROGRESS:
            worker.completed_steps = int(_number(event.detail, "completed_steps") or 0)
            worker.total_steps = int(_number(event.detail, "total_steps") or 0)
            worker.loss = _number(event.detail, "train_loss")
            # Also while others score a version: a late worker trains on.
            worker.activity = "training"
            return
        activity = _WORKER_ACTIVITY.get(event.type)
        if activity:
            worker.activity = activity
        if event.type is EventType.UPDATE_COMMITTED:
            worker.completed_steps = worker.total_steps = 0
            size = _number(event.detail, "total_bytes") or 0.0
            worker.activity = f"sent {size / 1e6:.2g} MB"

    def _apply_to_run(self, event: RunEvent) -> None:
        self.phase = _PHASES.get(event.type, self.phase)
        if event.type is EventType.ROUND_STARTED:
            cohort = event.detail.get("cohort")
            for name in cohort if isinstance(cohort, list) else []:
                worker = self.worker(str(name))
                worker.activity = "training"
                worker.completed_steps, worker.loss = 0, None
        elif event.type is EventType.ADAPTER_PUBLISHED and event.round:
            for worker in self.workers.values():
                if worker.activity not in ("lost", "left"):
                    worker.activity = "evaluating"


_WORKER_ACTIVITY: Mapping[EventType, str] = {
    EventType.WORKER_REGISTERED: "loading the model",
    EventType.WORKER_READY: "ready",
    EventType.WORKER_LOST: "lost",
    EventType.WORKER_LEFT: "left",
    EventType.EVALUATION_REPORTED: "evaluated",
}

_PHASES: Mapping[EventType, str] = {
    EventType.RUN_CREATED: "created",
    EventType.RUN_STARTED: "waiting for workers",
    EventType.ROUND_STARTED: "training",
    EventType.ROUND_CLOSED: "aggregating",
    EventType.ADAPTER_PUBLISHED: "evaluating",
    EventType.ROUND_COMPLETED: "round complete",
    EventType.RUN_COMPLETED: "completed",
    EventType.RUN_STOPPED: "stopped",
    EventType.RUN_FAILED: "failed",
}


def notice_of(event: RunEvent, view: RunView) -> str:
    """A sentence for events that people should hear of as they happen; empty for the others.

    Args:
        event: what has happened.
        view: the run, the event included.
    """
    match event.type:
        case EventType.WORKER_LEFT if view.has_ended:
            return ""
        case EventType.WORKER_LOST:
            return f"{event.worker} is lost: no sign of life for too long"
        case EventType.TASK_REASSIGNED:
            return f"{event.worker} takes part in round {event.round} for {event.detail['from']}"
        case EventType.WORKER_LEFT:
            reason = event.detail.get("reason")
            return f"{event.worker} has left{f': {reason}' if reason else ''}"
        case EventType.DEADLINE_EXTENDED:
            return f"deadline extended: {event.detail.get('reason', '')}"
        case EventType.SERVER_RESTARTED:
            return f"the server has resumed the run in round {event.round}"
        case EventType.RUN_COMPLETED if event.detail.get("reason"):
            return f"the run is complete: {event.detail['reason']}"
        case EventType.RUN_FAILED | EventType.RUN_STOPPED:
            return f"{event.type.value.replace('_', ' ')}: {event.detail.get('reason', '')}"
        case _:
            return ""


def _number(detail: Mapping[str, Any], name: str) -> float | None:
    value = detail.get(name)
    return float(value) if isinstance(value, int | float) else None
