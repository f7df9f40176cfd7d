"""Metrics of runs, made at each scrape from what the runs are then: nothing is kept up to date.

Labels are bounded. A run's series are there while it is open and for the runs that ended last;
those by worker only while it is open, and there are as many as it has workers. Scores are those
that fedlora names: a worker may send others, which stay in the reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aggregator_service.metrics.families import counter, gauge, summary
from aggregator_service.metrics.rounds import RoundTallies
from aggregator_service.rounds.state import RunState
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.score_names import COSTS, SHARES

__all__ = ["RunCollector", "WatchedRun"]

_KEPT_ENDED = 10
"""runs that have ended and are still shown, so that a scrape sees how they ended"""

_SCORES = frozenset(
    {"local_global_gap"}
    | {
        f"{group}_{name}"
        for group in ("test", "held_out", "local", "personal")
        for name in (*SHARES, *COSTS)
    }
)


class WatchedRun(Protocol):
    """A run that is driven here."""

    @property
    def state(self) -> RunState:
        """As it is durable now."""
        ...

    def now(self) -> float:
        """The run's clock, in seconds."""
        ...


class RunCollector(Collector):
    """Looks at all runs of a server.

    Args:
        runs: those there are, oldest first; called from the thread of a scrape.
        tallies: what their rounds have come to.
    """

    def __init__(self, runs: Callable[[], Sequence[WatchedRun]], tallies: RoundTallies) -> None:
        self._runs = runs
        self._tallies = tallies

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        runs = self._runs()
        now = {run.state.run_id: run.now() for run in runs}
        states = _shown([run.state for run in runs])
        yield from _progress(states, now)
        yield from _workers([s for s in states if not s.phase.is_final])
        yield from self._rounds(states)
        yield from self._results(states)

    def _rounds(self, states: Sequence[RunState]) -> Iterator[Metric]:
        tallies = [(s.spec.name, self._tallies.of(s.run_id)) for s in states]
        yield summary(
            "fedlora_round_duration_seconds",
            "Rounds completed by this process, and their phases' time in all.",
            ["run"],
            [((run,), tally.rounds) for run, tally in tallies],
        )
        yield summary(
            "fedlora_phase_duration_seconds",
            "Phases of completed rounds; aggregating is the aggregation.",
            ["run", "phase"],
            [
                ((run, phase), spent)
                for run, tally in tallies
                for phase, spent in tally.phases.items()
            ],
        )
        yield summary(
            "fedlora_certificate_duration_seconds",
            "Computing certificates, beside the rounds.",
            ["run"],
            [((run,), tally.certificates) for run, tally in tallies],
        )
        yield counter(
            "fedlora_run_events",
            "Stored events of a run since this process began, by type (docs/protocol.md).",
            ["run", "type"],
            [
                ((run, type_.value), tally.events.get(type_, 0))
                for run, tally in tallies
                for type_ in EventType
                if type_ is not EventType.WORKER_PROGRESS
            ],
        )

    def _results(self, states: Sequence[RunState]) -> Iterator[Metric]:
        tallies = [(s.spec.name, self._tallies.of(s.run_id)) for s in states]
        rounds = [(run, tally.last) for run, tally in tallies if tally.last is not None]
        yield gauge(
            "fedlora_score",
            "Pooled scores of the last completed round (docs/evaluation.md).",
            ["run", "score"],
            [
                ((run, name), value)
                for run, last in rounds
                for name, value in last.scores.items()
                if name in _SCORES
            ],
        )
        yield gauge(
            "fedlora_train_loss",
            "Mean training loss of the last completed round, each worker by its examples.",
            ["run"],
            [((run,), last.train_loss) for run, last in rounds if last.train_loss is not None],
        )
        yield gauge(
            "fedlora_round_payload_bytes",
            "Bytes of the last completed round: up to the server, down to the workers.",
            ["run", "direction"],
            [
                ((run, direction), value)
                for run, last in rounds
                for direction, value in (("up", last.bytes_up), ("down", last.bytes_down))
            ],
        )
        certified = [(run, tally) for run, tally in tallies if tally.certified is not None]
        yield gauge(
            "fedlora_certificate_round",
            "Round of the newest certificate.",
            ["run"],
            [((run,), tally.certified_round) for run, tally in certified],
        )
        for name, text in _CERTIFICATE.items():
            yield gauge(
                f"fedlora_certificate_{name}_ratio",
                text,
                ["run"],
                [((run,), getattr(tally.certified, name)) for run, tally in certified],
            )


_CERTIFICATE: Mapping[str, str] = {
    "relative_error": "Distance of the published product from the mean of the workers' products, "
    "over that mean's norm.",
    "lower_bound": "The least such distance of any adapter of that rank (Eckart-Young).",
    "factor_mean_error": "The distance that the mean of the factors would have had.",
}


def _progress(states: Sequence[RunState], now: Mapping[str, float]) -> Iterator[Metric]:
    """Where runs stand."""
    yield gauge(
        "fedlora_run_phase",
        "1 for the phase that a run is in, 0 for the others.",
        ["run", "phase"],
        [((s.spec.name, p.value), float(p is s.phase)) for s in states for p in RunPhase],
    )
    for name, text, value in _PROGRESS:
        rows = [((state.spec.name,), value(state)) for state in states]
        yield gauge(f"fedlora_run_{name}", text, ["run"], rows)
    yield gauge(
        "fedlora_run_phase_age_seconds",
        "Time of the run's own clock that an open run has been in its phase.",
        ["run", "phase"],
        [
            ((s.spec.name, s.phase.value), max(0.0, now[s.run_id] - s.phase_started))
            for s in states
            if not s.phase.is_final
        ],
    )


_PROGRESS: tuple[tuple[str, str, Callable[[RunState], float]], ...] = (
    ("round", "Current or last round.", lambda s: s.round),
    ("planned_rounds", "Rounds that the run is to have.", lambda s: s.spec.rounds.num_rounds),
    ("cohort_workers", "Workers asked for the current round.", lambda s: len(s.cohort)),
    ("round_updates", "Updates that the current round has.", lambda s: len(s.updates)),
    ("deadline_seconds", "Time that a round may train.", lambda s: s.spec.rounds.deadline_seconds),
)


def _workers(states: Sequence[RunState]) -> Iterator[Metric]:
    """Workers of open runs: how many are in each state, and what each has done."""
    counts = {s.run_id: Counter(w.state for w in s.workers.values()) for s in states}
    yield gauge(
        "fedlora_run_workers",
        "Workers of an open run by state.",
        ["run", "state"],
        [
            ((s.spec.name, state.value), counts[s.run_id][state])
            for s in states
            for state in WorkerState
        ],
    )
    workers = [((s.spec.name, w.name), w, s) for s in states for w in s.workers.values()]
    labels = ["run", "worker"]
    yield gauge(
        "fedlora_run_worker_connected",
        "1 for a worker of an open run that is there, 0 for one that is lost or has left.",
        labels,
        [(key, float(s.is_expected(w.name))) for key, w, s in workers],
    )
    yield counter(
        "fedlora_run_worker_updates",
        "Updates of a worker that counted, since the run began.",
        labels,
        [(key, w.num_updates) for key, w, _ in workers],
    )
    yield counter(
        "fedlora_run_worker_tasks",
        "Rounds that a worker was asked to train for, since the run began.",
        labels,
        [(key, w.num_tasks) for key, w, _ in workers],
    )
    yield gauge(
        "fedlora_run_worker_loss",
        "The last loss known of a model on a worker's data.",
        labels,
        [(key, w.loss) for key, w, _ in workers if w.loss is not None],
    )


def _shown(states: Sequence[RunState]) -> list[RunState]:
    """The open runs, and the youngest of those that have ended."""
    ended = [s.run_id for s in states if s.phase.is_final]
    hidden = frozenset(ended[:-_KEPT_ENDED])
    return [s for s in states if s.run_id not in hidden]
