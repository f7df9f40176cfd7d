"""What a worker is given to do, and what it tells of itself."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlora.codecs.spec import CodecName
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.plan import RoundPlan, WorkerFeature
from fedlora.runs.spec import RunSpec
from fedlora.tensors.manifest import DataType, TensorManifest

__all__ = [
    "Acknowledgement",
    "AdapterHeader",
    "Capabilities",
    "DataSlot",
    "Directive",
    "Evaluation",
    "EvaluationScope",
    "EvaluationSplit",
    "Limits",
    "Progress",
    "Registration",
    "Role",
    "Task",
    "TaskKind",
    "UpdateHeader",
    "UploadState",
    "UploadStatus",
    "check_worker_name",
]

_WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")


def check_worker_name(name: str) -> str:
    """Returns a well-formed worker name, or raises INVALID_ARGUMENT."""
    if not _WORKER_NAME.fullmatch(name):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            "a worker name is 1 to 128 letters, digits, '-', '_', '.', '@' or ':', beginning with "
            f"a letter or digit, got {name[:140]!r}",
        )
    return name


class TaskKind(enum.StrEnum):
    """What there is to do."""

    INITIALIZE = "initialize"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REFINE = "refine"
    WAIT = "wait"
    STOP = "stop"


class Role(enum.StrEnum):
    """What a worker is there for."""

    PARTY = "party"
    """holds a party's data, and is part of cohorts"""
    SERVER_DATA = "server_data"
    """holds the server's own or public data: refines what a round came to, is in no cohort"""


class EvaluationScope(enum.StrEnum):
    """Whose scores: the worker's own adapter, the published one, or that one made personal."""

    LOCAL = "local"
    GLOBAL = "global"
    PERSONAL = "personal"


class EvaluationSplit(enum.StrEnum):
    """Which examples: the worker's own held-out ones, or a shard of the shared test set."""

    HELD_OUT = "held_out"
    TEST = "test"


class UploadState(enum.StrEnum):
    """How much of an upload the server holds."""

    UNKNOWN = "unknown"
    PARTIAL = "partial"
    COMMITTED = "committed"


class Directive(enum.StrEnum):
    """Whether the work in hand still counts."""

    CONTINUE = "continue"
    ABANDON_TASK = "abandon_task"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a worker runs on."""

    device_type: str = "cpu"
    device_name: str = ""
    device_uuid: str = ""
    device_memory_bytes: int = 0
    max_rank: int = 0
    """largest LoRA rank it can train; 0 for no limit"""
    wire_dtypes: tuple[DataType, ...] = ()
    """element types it can send and receive; empty for all"""
    versions: Mapping[str, str] = field(default_factory=dict)
    features: tuple[WorkerFeature, ...] = ()
    """what it can do beyond training A and B from what it was given"""
    role: Role = Role.PARTY
    codecs: tuple[CodecName, ...] = ()
    """codecs it can write updates in"""
    plugins: tuple[str, ...] = ()
    """plug-ins it can train with"""
    preferred_data_slot: int | None = None
    """share of an experiment's data that it would have, from 0; None: which its name ends with"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server allows a worker."""

    max_update_bytes: int = 8 * 1024**3
    max_chunk_bytes: int = 1024**2
    heartbeat_interval_seconds: float = 15.0
    idle_timeout_seconds: float = 30.0
    min_bytes_per_second: float = 65536.0
    """slower uploads are given up"""

    @property
    def chunk_bytes(self) -> int:
        """Payload bytes for one message.

        The server hears of a message when all of it has come: at the least rate, too, that is
        before the idle timeout.
        """
        at_least_rate = int(self.min_bytes_per_second * self.idle_timeout_seconds)
        return max(1, min(self.max_chunk_bytes, at_least_rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSlot:
    """The part of an experiment's data that is one worker's."""

    index: int
    partition: PartitionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The server's answer to a worker that joins."""

    session_token: str
    run_id: str
    run: RunSpec
    rank: int
    limits: Limits
    data_slot: DataSlot | None = None
    replaced_session: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work."""

    task_id: str
    kind: TaskKind
    round: int = 0
    adapter_version: int = 0
    seed: int = 0
    shard_index: int = 0
    shard_count: int = 0
    remaining_seconds: float = 0.0
    reason: str = ""
    plan: RoundPlan = field(default_factory=RoundPlan)
    personal_version: int = 0
    """of an evaluation with a personal stage: the version that this begins from"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores on one set of examples; metrics are means over num_examples."""

    scope: EvaluationScope
    split: EvaluationSplit
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    label_counts: LabelCounts | None = None
    """of a classifier: what macro-F1 is made of"""
    experience: int | None = None
    """of a continual run: the experience, from 1, whose examples these are"""

    def __post_init__(self) -> None:
        counts = self.label_counts
        if counts is not None and counts.num_examples != self.num_examples:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"label counts: expected those of {self.num_examples} examples, got "
                f"{counts.num_examples}",
            )

    @property
    def label(self) -> str:
        """What the scores are called in events and logs: after their examples, or personal."""
        personal = self.scope is EvaluationScope.PERSONAL
        name = self.scope.value if personal else self.split.value
        return name if self.experience is None else f"{name}_experience_{self.experience}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateHeader:
    """First message of an upload."""

    session_token: str
    run_id: str
    task_id: str
    round: int
    base_version: int
    idempotency_key: str
    total_bytes: int
    start_offset: int = 0
    manifest: TensorManifest
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterHeader:
    """First message of a download."""

    run_id: str
    adapter_version: int
    round: int
    rank: int
    total_bytes: int
    digest: bytes
    manifest: TensorManifest
    held_version: int | None = None
    """the version over which the payload is to be laid; None: it is complete"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """The server's word that an update counts."""

    update_id: str
    total_bytes: int
    digest: bytes
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """How much of an upload the server holds, and its acknowledgement if that is all."""

    state: UploadState
    durable_bytes: int = 0
    acknowledgement: Acknowledgement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the work in hand has got."""

    task_id: str
    completed_steps: int
    total_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
