"""What is known of a round once it is over: its updates, scores, times and certificate.

Source of the certificate's fields: one weighted mean of products T, the product that
was published, the product of the factor means, and Eckart-Young's bound at that rank.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlora.adapters.spec import AdapterLayout
from fedlora.runs.phase import RunPhase
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Evaluation

__all__ = [
    "BestRound",
    "Certificate",
    "CertificateEntry",
    "EventType",
    "RoundReport",
    "Run",
    "RunEvent",
    "UpdateReport",
    "WorkerEvaluation",
    "WorkerInfo",
    "WorkerState",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEntry:
    """How much one module, or the whole adapter (module ""), lost in aggregation.

    All norms are Frobenius norms of products with the scale folded in.
    """

    module: str = ""
    ideal_norm: float
    """|T|, T the weighted mean of the workers' products"""
    change_norm: float
    """|T - T_prev|, T_prev the product the round started from"""
    relative_error: float
    """|published - T| / |T|, as rounded and sent"""
    factor_mean_error: float
    """the same for the product of the factor means"""
    lower_bound: float
    """least error of any adapter of that rank (Eckart-Young), over |T|"""
    relative_error_vs_change: float
    factor_mean_error_vs_change: float
    lower_bound_vs_change: float
    gap_closed: float
    """share of the avoidable squared error that was avoided; NaN where there was none"""
    rank: int
    effective_rank: float
    """(sum of singular values)^2 / sum of their squares, of T"""
    measurements: Mapping[str, float] = field(default_factory=dict)
    """what the method measured, and how far workers moved A and B (`aggregation/sensitivity.py`)"""
    spectrum: tuple[float, ...] = ()
    """the largest singular values of T, descending, up to four times the rank; none for the whole
    adapter"""
    is_estimate: bool = False
    """whether the norms are estimates, good to about 2 %: of a cohort whose ranks add up to far
    more than the layer's"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A round's certificate; `overall` divides summed squares, never averages ratios."""

    method: str
    overall: CertificateEntry
    modules: tuple[CertificateEntry, ...]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """One worker's part in a round."""

    worker: str
    num_examples: int
    weight: float
    total_bytes: int
    digest: str
    rank: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    elapsed_seconds: float = 0.0
    staleness: int = 0
    """rounds by which it was late"""
    share: float | None = None
    """how much of its change counted, where a plug-in said so; None for all of it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvaluation:
    """One worker's scores of the published adapter."""

    worker: str
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """Everything known about a round."""

    round: int
    method: str
    base_version: int
    adapter_version: int
    adapter_digest: str
    cohort: tuple[str, ...]
    updates: tuple[UpdateReport, ...]
    evaluations: tuple[WorkerEvaluation, ...] = ()
    certificate: Certificate | None = None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """pooled scores: test_accuracy, held_out_accuracy, local_accuracy, local_global_gap, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestRound:
    """The round whose version has the best score so far."""

    round: int
    adapter_version: int
    metric: str
    """the pooled score that it is judged by: `rounds.best_by`"""
    value: float


class WorkerState(enum.StrEnum):
    """How a worker looks from the server."""

    JOINING = "joining"
    READY = "ready"
    LOST = "lost"
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker as operators see it."""

    name: str
    state: WorkerState
    capabilities: Capabilities
    rank: int
    data_slot: int | None = None
    num_updates: int = 0
    """that counted"""
    num_tasks: int = 0
    """rounds that it was asked to train for"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as operators see it."""

    run_id: str
    spec: RunSpec
    phase: RunPhase
    round: int
    adapter_version: int | None
    workers: tuple[WorkerInfo, ...]
    created_at: float
    """seconds since the epoch"""
    reason: str = ""
    """why it failed, was stopped, or is complete before its last round"""
    layout: AdapterLayout | None = None
    best: BestRound | None = None
    """None before a round has been scored, and where rounds are judged by nothing"""


class EventType(enum.StrEnum):
    """What happened."""

    RUN_CREATED = "run_created"
    RUN_STARTED = "run_started"
    WORKER_REGISTERED = "worker_registered"
    WORKER_READY = "worker_ready"
    WORKER_LOST = "worker_lost"
    WORKER_LEFT = "worker_left"
    ROUND_STARTED = "round_started"
    UPDATE_COMMITTED = "update_committed"
    ROUND_CLOSED = "round_closed"
    ADAPTER_PUBLISHED = "adapter_published"
    EVALUATION_REPORTED = "evaluation_reported"
    ROUND_COMPLETED = "round_completed"
    CERTIFICATE_READY = "certificate_ready"
    DEADLINE_EXTENDED = "deadline_extended"
    RUN_COMPLETED = "run_completed"
    RUN_STOPPED = "run_stopped"
    RUN_FAILED = "run_failed"
    SERVER_RESTARTED = "server_restarted"
    TASK_REASSIGNED = "task_reassigned"
    WORKER_PROGRESS = "worker_progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened in a run. Stored events count from 1; progress has sequence 0."""

    sequence: int
    type: EventType
    time: float
    """seconds since the epoch"""
    round: int = 0
    worker: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)
