"""When rounds begin and end, and who takes part."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedlora.errors import invalid_argument
from fedlora.runs.method import RuleSpec

__all__ = [
    "BelowQuorum",
    "FinalVersion",
    "LateUpdates",
    "RoundEngine",
    "RoundRules",
    "Sampling",
]


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
    power_of_choice: of some candidates those with the highest loss. Others have the section
    [sampler]"""
    sampling_candidates: int = 0
    """candidates of power_of_choice, drawn by examples; 0 for twice as many as are taken"""
    sampler: RuleSpec | None = None
    """which workers are taken, in place of `sampling`, with the rule's own options"""
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
    held_out_share: float = 1.0
    """share of a worker's held-out examples that it scores in a round, evenly taken; all of them in
    the last"""
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

    @property
    def client_sampler(self) -> RuleSpec:
        """Which workers are taken where not all are, as a rule with its options."""
        if self.sampler is not None:
            return self.sampler
        has_candidates = self.sampling is Sampling.POWER_OF_CHOICE
        options = {"candidates": self.sampling_candidates} if has_candidates else {}
        return RuleSpec(name=self.sampling.value, options=options)

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
        self._check_sampler()
        most = self.closing_updates or self.cohort_size or self.min_workers
        if self.quorum > most:
            raise invalid_argument(
                f"rounds.quorum is {self.quorum}, but a round may have only {most} updates",
                "Lower the quorum, or raise min_workers and cohort_size",
            )
        self._check_best_round()
        if self.counts_late_updates and self.max_staleness < 1:
            raise invalid_argument(
                f"rounds.max_staleness is {self.max_staleness}, so no late update could count",
                'Raise it, or choose late_updates = "drop" with engine = "sync"',
            )

    def _check_ranges(self) -> None:
        for name in ("num_rounds", "min_workers", "quorum", "evaluate_every"):
            if getattr(self, name) < 1:
                raise invalid_argument(
                    f"rounds.{name} must be at least 1, got {getattr(self, name)}"
                )
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
                raise invalid_argument(
                    f"rounds.{name} must not be negative, got {getattr(self, name)}"
                )
        # A run's records have no infinity.
        if not 0 < self.deadline_seconds < float("inf"):
            raise invalid_argument(
                f"rounds.deadline_seconds must be positive and finite, got {self.deadline_seconds}"
            )
        for name in ("mixing", "test_share", "held_out_share"):
            if not 0 < getattr(self, name) <= 1:
                raise invalid_argument(
                    f"rounds.{name} must lie in (0, 1], got {getattr(self, name)}"
                )

    def _check_sampler(self) -> None:
        key, rule = "rounds.sampling", self.client_sampler.name
        if self.sampler is not None:
            if self.sampling is not Sampling.UNIFORM or self.sampling_candidates:
                raise invalid_argument(
                    f'sampler.name is "{rule}", and rounds.sampling is "{self.sampling.value}" '
                    f"with {self.sampling_candidates} sampling_candidates",
                    "Leave sampling and sampling_candidates out of [rounds], or [sampler]",
                )
            key = "sampler.name"
        is_asked = self.sampler is not None or self.sampling is not Sampling.UNIFORM
        if is_asked and not (self.cohort_size or self.concurrency):
            raise invalid_argument(
                f'{key} is "{rule}", but all ready workers are taken',
                "Set rounds.cohort_size (or concurrency, for the engines buffered and async)",
            )

    def _check_best_round(self) -> None:
        if not self.best_by:
            for name in ("early_stopping_rounds", "early_stopping_min_change"):
                if getattr(self, name):
                    raise invalid_argument(
                        f"rounds.{name} is {getattr(self, name)}, but rounds are judged by nothing",
                        'Set rounds.best_by, for example to "test_accuracy"',
                    )
            if self.final_version is FinalVersion.BEST:
                raise invalid_argument(
                    'rounds.final_version is "best", but rounds are judged by nothing',
                    'Set rounds.best_by, for example to "test_accuracy"',
                )
        elif not self.evaluate:
            raise invalid_argument(
                f'rounds.best_by is "{self.best_by}", and rounds.evaluate is false',
                "Set rounds.evaluate = true, or leave best_by out",
            )
        # local_, personal_ and held_out_ scores are all of held-out examples.
        share = "test_share" if self.best_by.startswith("test_") else "held_out_share"
        if self.best_by and getattr(self, share) < 1:
            raise invalid_argument(
                f'rounds.best_by is "{self.best_by}", and with rounds.{share} '
                f"{getattr(self, share)} the last round is scored on other examples than those "
                "before it",
                f"Set {share} = 1, or judge by another score",
            )
        if 0 < self.early_stopping_rounds < self.evaluate_every:
            raise invalid_argument(
                f"rounds.early_stopping_rounds is {self.early_stopping_rounds}, below "
                f"evaluate_every {self.evaluate_every}: no round in between could be found better",
                "Raise early_stopping_rounds, or evaluate more often",
            )

    def _check_sync(self) -> None:
        if self.buffer_size or self.concurrency:
            name = "buffer_size" if self.buffer_size else "concurrency"
            raise invalid_argument(
                f"rounds.{name} has no meaning for rounds that wait for their cohort",
                'Set rounds.engine = "buffered", or leave it out',
            )
        if self.over_selection and not self.cohort_size:
            raise invalid_argument(
                "rounds.over_selection needs a cohort_size: with all ready workers in the round "
                "there is nobody to ask in addition",
            )
        if self.cohort_size > 0 and self.min_workers < self.cohort_size:
            raise invalid_argument(
                f"rounds.min_workers is {self.min_workers}, below cohort_size {self.cohort_size}"
            )

    def _check_engine(self) -> None:
        engine = self.engine.value
        if self.cohort_size or self.over_selection:
            name = "cohort_size" if self.cohort_size else "over_selection"
            raise invalid_argument(
                f'rounds.{name} has no meaning for the engine "{engine}", which has no cohorts',
                "Use rounds.concurrency to let fewer workers train at a time",
            )
        if self.engine is RoundEngine.BUFFERED and not 1 <= self.buffer_size <= self.min_workers:
            raise invalid_argument(
                f"rounds.buffer_size must lie between 1 and min_workers {self.min_workers}, since "
                f"a worker counts once in a buffer, got {self.buffer_size}"
            )
        if self.engine is RoundEngine.ASYNC and self.buffer_size > 1:
            raise invalid_argument(
                f"rounds.buffer_size is {self.buffer_size}, and the engine async has one of 1",
                'Set rounds.engine = "buffered"',
            )
        if self.concurrency and self.concurrency < self.closing_updates:
            raise invalid_argument(
                f"rounds.concurrency is {self.concurrency}, so a buffer of {self.closing_updates} "
                "updates would never fill",
            )
