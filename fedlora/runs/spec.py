"""A run's specification: adapter, method, round rules, training, data split, codec, plug-ins.

Field docstrings are the reference: configuration files, flags and documentation are
built from these dataclasses, so a default is written once, here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlora.adapters.spec import AdapterSpec
from fedlora.codecs.spec import CodecSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.score_names import judged_scores
from fedlora.tensors.manifest import FLOATS, DataType

__all__ = [
    "BelowQuorum",
    "FinalVersion",
    "Gauge",
    "LateUpdates",
    "LearningRateSchedule",
    "MethodSpec",
    "OptimizerName",
    "OptionValue",
    "PartitionScheme",
    "PartitionSpec",
    "RoundEngine",
    "RoundRules",
    "RuleSpec",
    "RunPhase",
    "RunSpec",
    "Sampling",
    "TrainingSpec",
]

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

OptionValue = float | int | bool | str
"""what an option of a method or rule may be, in a file or on the wire"""


def _invalid(message: str, hint: str = "") -> FedLoraError:
    return FedLoraError(Reason.INVALID_ARGUMENT, message, hint=hint)


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


class BelowQuorum(enum.StrEnum):
    """What happens when a deadline passes below quorum."""

    EXTEND = "extend"
    FAIL = "fail"


class RoundEngine(enum.StrEnum):
    """What a round waits for."""

    SYNC = "sync"
    """its cohort"""
    BUFFERED = "buffered"
    """a number of updates, from whatever version they began (FedBuff)"""
    ASYNC = "async"
    """one update (FedAsync)"""


class LateUpdates(enum.StrEnum):
    """What becomes of an update whose round has closed."""

    DROP = "drop"
    CARRY = "carry"


class Sampling(enum.StrEnum):
    """Which workers are taken where not all are."""

    UNIFORM = "uniform"
    BY_EXAMPLES = "by_examples"
    POWER_OF_CHOICE = "power_of_choice"


class FinalVersion(enum.StrEnum):
    """Which version a run ends with."""

    LAST = "last"
    BEST = "best"


class PartitionScheme(enum.StrEnum):
    """How an experiment splits one file over several workers."""

    IID = "iid"
    DIRICHLET = "dirichlet"
    COLUMN = "column"


class LearningRateSchedule(enum.StrEnum):
    """Course of the learning rate over the rounds of a run."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Gauge(enum.StrEnum):
    """In which factors a product is published: (B M^-1, M A) is one model for every M."""

    OWN = "own"
    """as the method and its compression leave them"""
    BALANCED = "balanced"
    ORTHONORMAL_A = "orthonormal_a"
    ORTHONORMAL_B = "orthonormal_b"
    CLOSEST_A = "closest_a"
    PROCRUSTES = "procrustes"


class OptimizerName(enum.StrEnum):
    """What makes the steps of local training."""

    ADAMW = "adamw"
    SGD = "sgd"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """A rule or plug-in that goes with the method, and its options."""

    name: str
    """name of the rule; `fedlora methods` lists them"""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """the rule's own options; defaults where left out"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """The aggregation method with its options, and the rules around it (docs/algorithms.md)."""

    name: str = "flora_na"
    """name of the method; `fedlora methods` lists them"""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """the method's own options; defaults where left out"""
    gauge: Gauge = Gauge.OWN
    """factors in which the product is published. own: the method's; balanced: equally large;
    orthonormal_a, orthonormal_b: orthonormal rows in A, columns in B; closest_a, procrustes: near
    those of the version before, the second by a rotation alone"""
    weighting: RuleSpec | None = None
    """how much each update counts; absent: the method's own, or the number of examples"""
    compression: RuleSpec | None = None
    """how a combination becomes an adapter of the run's rank; absent: the method's own"""
    server_optimizer: RuleSpec | None = None
    """how far the global adapter follows a round's result; absent: all the way"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """When rounds begin and end, and who takes part."""

    num_rounds: int = 8
    """rounds of the run"""
    engine: RoundEngine = RoundEngine.SYNC
    """sync: a round waits for its cohort; buffered (FedBuff): it closes with buffer_size updates,
    and nobody waits for a slow worker; async (FedAsync): it closes with one"""
    min_workers: int = 2
    """ready workers needed before a round begins"""
    cohort_size: int = 0
    """workers sampled for a round; 0 takes all that are ready"""
    sampling: Sampling = Sampling.UNIFORM
    """which workers are taken where not all are: uniform; by_examples: the more data the likelier;
    power_of_choice: of some candidates those with the highest loss"""
    sampling_candidates: int = 0
    """candidates of power_of_choice, drawn by examples; 0 for twice as many as are taken"""
    over_selection: float = 0.0
    """share of cohort_size that is asked in addition; the round closes with the first cohort_size
    updates"""
    quorum: int = 2
    """updates with which a round may close once its deadline has passed, or once nobody is left to
    wait for"""
    deadline_seconds: float = 600.0
    """seconds a round may train; it closes earlier when all have reported"""
    below_quorum: BelowQuorum = BelowQuorum.EXTEND
    """at a deadline with too few updates: wait once more, or fail the run"""
    max_extensions: int = 0
    """deadlines of one round that may pass below quorum before the run fails; 0 for any number"""
    late_updates: LateUpdates = LateUpdates.DROP
    """an update whose round has closed is dropped, or carried to the round that is open then, with
    less weight the later it is"""
    max_staleness: int = 4
    """rounds by which an update may be late where late ones count (carry, buffered, async)"""
    staleness_exponent: float = 0.5
    """an update that is late by t rounds counts (1 + t)^-x times as much; 0 for no discount"""
    buffer_size: int = 0
    """updates that close a round of the buffered engine; a worker has at most one of them"""
    concurrency: int = 0
    """workers that train at a time under buffered and async; 0 for all that are ready"""
    mixing: float = 0.6
    """share of the global adapter that an update of the async engine replaces when it is fresh"""
    evaluate: bool = True
    """score each published adapter on the workers' held-out and shared test data"""
    evaluate_every: int = 1
    """rounds between two evaluations; the last round is always evaluated"""
    test_share: float = 1.0
    """share of the shared test set that is scored after a round; all of it after the last"""
    certify_every: int = 1
    """rounds between two certificates; the last round always gets one; 0 for none at all"""
    best_by: str = ""
    """score by which the best round is remembered, such as test_accuracy or held_out_loss
    (docs/evaluation.md); empty for none"""
    early_stopping_rounds: int = 0
    """rounds without a better score after which the run is complete; 0 for never"""
    early_stopping_min_change: float = 0.0
    """change of the score up to which a round is no better, for early stopping"""
    final_version: FinalVersion = FinalVersion.LAST
    """the version in the run directory's final/: last, or best, that of the best round"""

    def certifies(self, round: int) -> bool:
        """Whether a round's aggregation is measured."""
        every = self.certify_every
        return bool(every) and (round % every == 0 or round == self.num_rounds)

    @property
    def counts_late_updates(self) -> bool:
        """Whether an update may count in a later round than the one it was made for."""
        return self.engine is not RoundEngine.SYNC or self.late_updates is LateUpdates.CARRY

    @property
    def closing_updates(self) -> int:
        """Updates with which a round closes at once; 0 where it waits for its cohort."""
        if self.engine is RoundEngine.SYNC:
            return self.cohort_size if self.over_selection else 0
        return self.buffer_size if self.engine is RoundEngine.BUFFERED else 1

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.engine is RoundEngine.SYNC:
            self._check_sync()
        else:
            self._check_engine()
        if self.sampling is not Sampling.UNIFORM and not (self.cohort_size or self.concurrency):
            raise _invalid(
                f'rounds.sampling is "{self.sampling.value}", but all ready workers are taken',
                "Set rounds.cohort_size (or concurrency, for the engines buffered and async)",
            )
        most = self.closing_updates or self.cohort_size or self.min_workers
        if self.quorum > most:
            raise _invalid(
                f"rounds.quorum is {self.quorum}, but a round may have only {most} updates",
                "Lower the quorum, or raise min_workers and cohort_size",
            )
        self._check_best_round()
        if self.counts_late_updates and self.max_staleness < 1:
            raise _invalid(
                f"rounds.max_staleness is {self.max_staleness}, so no late update could count",
                'Raise it, or choose late_updates = "drop" with engine = "sync"',
            )

    def _check_ranges(self) -> None:
        for name in ("num_rounds", "min_workers", "quorum", "evaluate_every"):
            if getattr(self, name) < 1:
                raise _invalid(f"rounds.{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "cohort_size",
            "sampling_candidates",
            "over_selection",
            "max_extensions",
            "max_staleness",
            "staleness_exponent",
            "buffer_size",
            "concurrency",
            "certify_every",
            "early_stopping_rounds",
            "early_stopping_min_change",
        ):
            if not getattr(self, name) >= 0:
                raise _invalid(f"rounds.{name} must not be negative, got {getattr(self, name)}")
        if not self.deadline_seconds > 0:
            raise _invalid(f"rounds.deadline_seconds must be positive, got {self.deadline_seconds}")
        for name in ("mixing", "test_share"):
            if not 0 < getattr(self, name) <= 1:
                raise _invalid(f"rounds.{name} must lie in (0, 1], got {getattr(self, name)}")

    def _check_best_round(self) -> None:
        if not self.best_by:
            for name in ("early_stopping_rounds", "early_stopping_min_change"):
                if getattr(self, name):
                    raise _invalid(
                        f"rounds.{name} is {getattr(self, name)}, but rounds are judged by nothing",
                        'Set rounds.best_by, for example to "test_accuracy"',
                    )
            if self.final_version is FinalVersion.BEST:
                raise _invalid(
                    'rounds.final_version is "best", but rounds are judged by nothing',
                    'Set rounds.best_by, for example to "test_accuracy"',
                )
        elif not self.evaluate:
            raise _invalid(
                f'rounds.best_by is "{self.best_by}", and rounds.evaluate is false',
                "Set rounds.evaluate = true, or leave best_by out",
            )
        if self.best_by.startswith("test_") and self.test_share < 1:
            raise _invalid(
                f'rounds.best_by is "{self.best_by}", and with rounds.test_share {self.test_share} '
                "the last round is scored on other examples than those before it",
                "Set test_share = 1, or judge by a held_out_ score",
            )
        if 0 < self.early_stopping_rounds < self.evaluate_every:
            raise _invalid(
                f"rounds.early_stopping_rounds is {self.early_stopping_rounds}, below "
                f"evaluate_every {self.evaluate_every}: no round in between could be found better",
                "Raise early_stopping_rounds, or evaluate more often",
            )

    def _check_sync(self) -> None:
        if self.buffer_size or self.concurrency:
            name = "buffer_size" if self.buffer_size else "concurrency"
            raise _invalid(
                f"rounds.{name} has no meaning for rounds that wait for their cohort",
                'Set rounds.engine = "buffered", or leave it out',
            )
        if self.over_selection and not self.cohort_size:
            raise _invalid(
                "rounds.over_selection needs a cohort_size: with all ready workers in the round "
                "there is nobody to ask in addition",
            )
        if self.cohort_size > 0 and self.min_workers < self.cohort_size:
            raise _invalid(
                f"rounds.min_workers is {self.min_workers}, below cohort_size {self.cohort_size}"
            )

    def _check_engine(self) -> None:
        engine = self.engine.value
        if self.cohort_size or self.over_selection:
            name = "cohort_size" if self.cohort_size else "over_selection"
            raise _invalid(
                f'rounds.{name} has no meaning for the engine "{engine}", which has no cohorts',
                "Use rounds.concurrency to let fewer workers train at a time",
            )
        if self.engine is RoundEngine.BUFFERED and not 1 <= self.buffer_size <= self.min_workers:
            raise _invalid(
                f"rounds.buffer_size must lie between 1 and min_workers {self.min_workers}, since "
                f"a worker counts once in a buffer, got {self.buffer_size}"
            )
        if self.engine is RoundEngine.ASYNC and self.buffer_size > 1:
            raise _invalid(
                f"rounds.buffer_size is {self.buffer_size}, and the engine async has one of 1",
                'Set rounds.engine = "buffered"',
            )
        if self.concurrency and self.concurrency < self.closing_updates:
            raise _invalid(
                f"rounds.concurrency is {self.concurrency}, so a buffer of {self.closing_updates} "
                "updates would never fill",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """Local training; equal for all workers of a run."""

    learning_rate: float = 2e-4
    """peak learning rate on the LoRA factors"""
    head_learning_rate: float = 0.0
    """learning rate of modules_to_save; 0 takes learning_rate"""
    b_learning_rate_ratio: float = 1.0
    """rate of lora_B over that of lora_A, which is learning_rate. LoRA+ (Hayou et al. 2024,
    arXiv:2402.12354) argues for more than 1, and for more the wider the model; 1 is plain LoRA"""
    schedule: LearningRateSchedule = LearningRateSchedule.LINEAR
    """course of both rates over the rounds of the run"""
    local_epochs: float = 1.0
    """passes over the worker's data in one round; ignored where local_steps is set"""
    local_steps: int = 0
    """optimiser steps in one round; 0 takes local_epochs"""
    batch_size: int = 16
    """examples per optimiser step"""
    micro_batch_size: int = 0
    """examples per forward pass; 0 takes batch_size"""
    max_sequence_tokens: int = 512
    """longer texts are cut"""
    optimizer: OptimizerName = OptimizerName.ADAMW
    """what makes the steps: adamw, or sgd; it begins anew in every round"""
    momentum: float = 0.0
    """share of its last step that sgd repeats"""
    weight_decay: float = 0.0
    """the optimiser's weight decay"""
    warmup_fraction: float = 0.0
    """share of a round's steps over which the rate rises from 0"""
    max_gradient_norm: float = 1.0
    """global norm at which gradients are clipped; 0 leaves them"""
    gradient_checkpointing: bool = False
    """trade time for memory"""
    packing: bool = False
    """pack several examples into one sequence (causal_lm)"""
    logit_adjustment: float = 0.0
    """correction for a worker's own label frequencies while it trains (sequence_classification):
    logits get this times the log of each label's share; 1 is the balanced softmax, 0 is none"""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise _invalid(f"training.learning_rate must be positive, got {self.learning_rate}")
        if self.head_learning_rate < 0:
            raise _invalid("training.head_learning_rate must not be negative")
        if not 0 < self.b_learning_rate_ratio < float("inf"):
            raise _invalid(
                "training.b_learning_rate_ratio must be positive and finite, got "
                f"{self.b_learning_rate_ratio}"
            )
        if self.local_steps < 0 or (self.local_steps == 0 and not self.local_epochs > 0):
            raise _invalid("set training.local_epochs above 0, or training.local_steps above 0")
        if self.batch_size < 1:
            raise _invalid(f"training.batch_size must be at least 1, got {self.batch_size}")
        if self.micro_batch_size < 0 or self.micro_batch_size > self.batch_size:
            raise _invalid(
                f"training.micro_batch_size must lie between 0 and batch_size {self.batch_size}, "
                f"got {self.micro_batch_size}"
            )
        if self.max_sequence_tokens < 2:
            raise _invalid("training.max_sequence_tokens must be at least 2")
        if not 0 <= self.warmup_fraction < 1:
            raise _invalid("training.warmup_fraction must lie in [0, 1)")
        if not 0 <= self.momentum < 1:
            raise _invalid(f"training.momentum must lie in [0, 1), got {self.momentum}")
        if self.momentum and self.optimizer is not OptimizerName.SGD:
            raise _invalid(
                f"training.momentum is {self.momentum}, and training.optimizer "
                f"{self.optimizer.value} has moments of its own",
                'Set training.optimizer = "sgd", or leave training.momentum out',
            )
        if self.logit_adjustment < 0:
            raise _invalid("training.logit_adjustment must not be negative")
        if self.max_gradient_norm < 0 or self.weight_decay < 0:
            raise _invalid(
                "training.max_gradient_norm and training.weight_decay must not be negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """An experiment's split of one file over several workers."""

    scheme: PartitionScheme = PartitionScheme.DIRICHLET
    """iid, dirichlet (by label) or column"""
    num_slots: int
    """parts the file is split into; each worker leases one"""
    dirichlet_alpha: float = 0.3
    """concentration; small is very non-IID"""
    column: str = ""
    """for scheme "column": rows with one value of it stay together"""
    seed: int = 0
    """seed of the split"""

    def __post_init__(self) -> None:
        if self.num_slots < 1:
            raise _invalid(f"partition.num_slots must be at least 1, got {self.num_slots}")
        if self.scheme is PartitionScheme.DIRICHLET and not self.dirichlet_alpha > 0:
            raise _invalid(
                f"partition.dirichlet_alpha must be positive, got {self.dirichlet_alpha}"
            )
        if self.scheme is PartitionScheme.COLUMN and not self.column:
            raise _invalid('partition.column is empty with scheme "column"')


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that defines a run."""

    name: str
    """letters, digits, "-", "_" and "."; unique on a server"""
    adapter: AdapterSpec
    method: MethodSpec = field(default_factory=MethodSpec)
    rounds: RoundRules = field(default_factory=RoundRules)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    partition: PartitionSpec | None = None
    """absent where every worker brings its own data"""
    seed: int = 0
    """seed of everything random in the run"""
    wire_dtype: DataType = field(default=DataType.F32, metadata={"among": FLOATS})
    """element type of adapters on the wire and on disk, and of updates where no codec is set"""
    codec: CodecSpec | None = None
    """how updates are written; absent: plainly, in wire_dtype"""
    plugins: tuple[RuleSpec, ...] = ()
    """what goes into local training beside the method, each under its own name; kept sorted"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", tuple(sorted(self.plugins, key=lambda p: p.name)))
        names = [plugin.name for plugin in self.plugins]
        if len({*names}) != len(names):
            raise _invalid(f"a plug-in is named twice in {names}")
        if not _RUN_NAME.fullmatch(self.name):
            raise _invalid(
                f"run.name must be 1 to 64 letters, digits, '-', '_' or '.', beginning with a "
                f"letter or digit, got {self.name[:80]!r}"
            )
        if not 0 <= self.seed < 2**63:
            raise _invalid(f"run.seed must lie in [0, 2^63), got {self.seed}")
        known = judged_scores(self.adapter.task_type)
        if self.rounds.best_by and self.rounds.best_by not in known:
            raise _invalid(
                f"rounds.best_by must be one of {', '.join(known)} for "
                f"{self.adapter.task_type.value}, got {self.rounds.best_by[:80]!r}"
            )
        if self.wire_dtype not in FLOATS:
            raise _invalid(
                f"run.wire_dtype must be one of {', '.join(FLOATS)}, got {self.wire_dtype.value}"
            )
