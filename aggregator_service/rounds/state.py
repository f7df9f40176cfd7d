"""The state of a run: everything a restarted server needs to go on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedlora.adapters.spec import AdapterLayout
from fedlora.codecs.spec import CodecSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.plan import RoundPlan, plan_for
from fedlora.runs.report import BestRound, WorkerState
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Evaluation, Role

__all__ = ["AdapterRecord", "Assignment", "RunState", "UpdateRecord", "WorkerRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker of the run, under its stable name."""

    name: str
    state: WorkerState
    epoch: int
    """counts its sessions; a session of an earlier epoch is fenced"""
    session_hash: str
    """SHA-256 of the session token, hexadecimal; the token itself is not kept"""
    instance_id: str
    capabilities: Capabilities
    rank: int
    slot: int | None = None
    """leased partition of an experiment's data"""
    confirmed: bool = False
    """this session has confirmed the adapter"""
    num_updates: int = 0
    num_tasks: int = 0
    """rounds it was asked to train for"""
    num_examples: int = 0
    """of its last update; 0 before the first"""
    loss: float | None = None
    """the last one known of a model on its data; None before the first"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Training that a worker has in hand, and whose update will count."""

    round: int
    base_version: int
    started: float
    """when it was given"""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """A committed update."""

    update_id: str
    round: int
    """in which it counts"""
    worker: str
    idempotency_key: str
    digest: str
    total_bytes: int
    base_version: int
    rank: int
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    elapsed_seconds: float = 0.0
    """from the beginning of the task to the commit"""
    given_rank: int = 0
    """rank of the adapter that the worker was given; 0: that of the update"""
    is_refinement: bool = False
    """made after the round's aggregation, on what came of it; no part of the cohort"""
    staleness: int = 0
    """rounds between the one it was made for and the one in which it counts"""

    def codec(self, spec: RunSpec) -> CodecSpec | None:
        """What it is written in; the first adapter and refinements are sent plainly."""
        return None if self.round == 0 or self.is_refinement else spec.codec


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """A published version of the global adapter; it never changes."""

    version: int
    round: int
    digest: str
    total_bytes: int
    rank: int
    measurements: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """what was measured, by module; what concerns all modules is under an empty name"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """of each worker in the sums"""
    shares: Mapping[str, float] = field(default_factory=dict)
    """how much of a worker's change counted, where that is not all of it"""
    state_digest: str = ""
    """what the method remembers for the next round; empty for nothing"""
    is_refinement: bool = False
    """not aggregated, but trained by a worker that holds the server's data"""
    base_version: int | None = None
    """the version before, on which the round built; None for the first"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run at one moment. Times are seconds of the run's own clock.

    That clock counts only while a server drives the run and never jumps, so a deadline
    survives a restart as the time that was left.
    """

    run_id: str
    spec: RunSpec
    created_at: float
    """seconds since the epoch, for people"""
    phase: RunPhase = RunPhase.CREATED
    reason: str = ""
    plans: tuple[RoundPlan, ...] = (RoundPlan(),)
    """what the rounds ask of workers, as a cycle"""
    layout: AdapterLayout | None = None
    """fixed by the first worker that confirms the adapter"""
    workers: Mapping[str, WorkerRecord] = field(default_factory=dict)
    round: int = 0
    """current or last round, from 1"""
    version: int | None = None
    """newest published adapter"""
    adapter: AdapterRecord | None = None
    """its record"""
    cohort: tuple[str, ...] = ()
    """workers asked for this round (or in the phase INITIALIZING), sorted"""
    assigned: Mapping[str, Assignment] = field(default_factory=dict)
    """by worker: training in hand, of this round or, where late updates count, of earlier ones"""
    updates: Mapping[str, UpdateRecord] = field(default_factory=dict)
    """the round's committed updates by worker"""
    carried: Mapping[str, UpdateRecord] = field(default_factory=dict)
    """by worker: updates that came between two rounds, and count in the next"""
    refiner: str = ""
    """in the phase REFINING: the worker that trains on what the round came to"""
    refinement: UpdateRecord | None = None
    """what it submitted"""
    evaluators: tuple[str, ...] = ()
    """workers asked to score the new adapter, sorted; their place is their shard"""
    evaluations: Mapping[str, tuple[Evaluation, ...]] = field(default_factory=dict)
    phase_started: float = 0.0
    deadline: float | None = None
    """when the phase may end without everybody"""
    extensions: int = 0
    """deadlines of this round that passed below quorum"""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    last_sequence: int = 0
    """sequence number of the last stored event"""
    best: BestRound | None = None
    """by `rounds.best_by`"""
    last_gain: BestRound | None = None
    """the last round that was better by enough to go on"""
    best_by_experience: Mapping[str, float] = field(default_factory=dict)
    """of a continual run: the best score of each experience so far, by its name in a report"""

    @property
    def ready_workers(self) -> tuple[str, ...]:
        """Names of the parties that can be given work, sorted."""
        return tuple(sorted(name for name in self.workers if self.is_ready(name)))

    @property
    def ready_refiners(self) -> tuple[str, ...]:
        """Names of the workers with the server's own data that can be given work, sorted."""
        role = Role.SERVER_DATA
        return tuple(sorted(name for name in self.workers if self.is_ready(name, role)))

    @property
    def num_parties(self) -> int:
        """Parties that the run has ever known, there or not."""
        return sum(w.capabilities.role is Role.PARTY for w in self.workers.values())

    @property
    def plan(self) -> RoundPlan:
        """What the current round asks of a worker."""
        return plan_for(self.plans, max(1, self.round))

    def certifies(self, round: int) -> bool:
        """Whether a round's aggregation is measured; that of a run's last round always is."""
        rules = self.spec.rounds
        ended = self.phase is RunPhase.COMPLETED and round == self.round
        return rules.certifies(round) or (ended and rules.certify_every > 0)

    def is_expected(self, worker: str) -> bool:
        """Whether a worker is there, or on its way."""
        return self.workers[worker].state in (WorkerState.JOINING, WorkerState.READY)

    def is_ready(self, worker: str, role: Role = Role.PARTY) -> bool:
        """Whether a worker can be given work of a role."""
        record = self.workers[worker]
        return record.state is WorkerState.READY and record.capabilities.role is role

    def with_worker(self, worker: WorkerRecord) -> RunState:
        """The state with one worker's record replaced."""
        return replace(self, workers={**self.workers, worker.name: worker})
