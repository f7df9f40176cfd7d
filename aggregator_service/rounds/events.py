"""What can happen to a run, and what a run then asks of its server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from fedlora.adapters.spec import AdapterLayout
from fedlora.runs.report import EventType, RoundReport
from fedlora.runs.tasks import Capabilities, Evaluation

__all__ = [
    "AdapterAggregated",
    "AdapterConfirmed",
    "AdapterRefined",
    "Aggregate",
    "AggregationFailed",
    "Certify",
    "DeadlineChecked",
    "Effect",
    "EvaluationReported",
    "Event",
    "Fact",
    "Refine",
    "RunStarted",
    "RunStopped",
    "Transition",
    "UpdateCommitted",
    "WorkerLeft",
    "WorkerLost",
    "WorkerRegistered",
    "WorkerReturned",
]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """An operator lets the run begin."""


@dataclass(frozen=True, slots=True)
class RunStopped:
    """An operator ends the run."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRegistered:
    """A process takes a worker's name and opens a session."""

    name: str
    instance_id: str
    session_hash: str
    capabilities: Capabilities
    takes_mixed_ranks: bool
    """whether the run's method combines updates of different ranks"""


@dataclass(frozen=True, slots=True)
class AdapterConfirmed:
    """A worker has attached the adapter to its base model."""

    worker: str
    layout: AdapterLayout


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker has not been heard of for too long."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerReturned:
    """A lost worker was heard of again, in the same session."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker ended its session in good order."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateCommitted:
    """All bytes of an update are stored under its digest."""

    update: UpdateRecord


@dataclass(frozen=True, slots=True)
class AdapterAggregated:
    """The round's new global adapter is stored under its digest."""

    adapter: AdapterRecord


@dataclass(frozen=True, slots=True)
class AdapterRefined:
    """The refined global adapter is stored under its digest."""

    adapter: AdapterRecord


@dataclass(frozen=True, slots=True)
class AggregationFailed:
    """The round's updates could not be combined."""

    reason: str


@dataclass(frozen=True, slots=True)
class EvaluationReported:
    """A worker has scored the published adapter."""

    worker: str
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class DeadlineChecked:
    """Time has passed; whatever was due is due."""


Event = (
    RunStarted
    | RunStopped
    | WorkerRegistered
    | AdapterConfirmed
    | WorkerLost
    | WorkerReturned
    | WorkerLeft
    | UpdateCommitted
    | AdapterAggregated
    | AdapterRefined
    | AggregationFailed
    | EvaluationReported
    | DeadlineChecked
)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Combine the round's updates into the next version."""

    round: int


@dataclass(frozen=True, slots=True)
class Certify:
    """Measure what the round's aggregation lost; nobody waits for it."""

    round: int


@dataclass(frozen=True, slots=True)
class Refine:
    """Put what the refiner trained into what the round came to."""

    round: int


Effect = Aggregate | Certify | Refine


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """An entry of the run's history, before it has a sequence number and a time."""

    type: EventType
    round: int = 0
    worker: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Result of one step: all of it becomes durable together, then the effects begin."""

    state: RunState
    facts: tuple[Fact, ...] = ()
    effects: tuple[Effect, ...] = ()
    updates: tuple[UpdateRecord, ...] = ()
    adapters: tuple[AdapterRecord, ...] = ()
    reports: tuple[RoundReport, ...] = ()
