"""What rounds have come to: sums over them since the process began, and the last of each run.

An Observer of commits (see `aggregator_service.observers`) on the event loop; a scrape reads from
another thread, so a run's tally is replaced whole and never changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from aggregator_service.rounds.state import RunState
from fedlora.runs.report import CertificateEntry, EventType, RoundReport, RunEvent

__all__ = ["LastRound", "RoundTallies", "Sum", "Tally"]


@dataclass(frozen=True, slots=True)
class Sum:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def plus(self, seconds: float) -> Sum:
        """With one more."""
        return Sum(self.count + 1, self.seconds + seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRound:
    """What is shown of a completed round: its report holds much more, for every worker."""

    round: int
    scores: Mapping[str, float]
    train_loss: float | None
    """mean over examples; None where no worker has said its own"""
    bytes_up: int
    bytes_down: int

    @classmethod
    def of(cls, report: RoundReport) -> Self:
        """From a report."""
        losses = [
            (update.num_examples, update.metrics["train_loss"])
            for update in report.updates
            if "train_loss" in update.metrics
        ]
        examples = sum(count for count, _ in losses)
        return cls(
            round=report.round,
            scores=report.metrics,
            train_loss=math.fsum(n * x for n, x in losses) / examples if examples else None,
            bytes_up=report.bytes_up,
            bytes_down=report.bytes_down,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One run's rounds, since this process has served it."""

    rounds: Sum = Sum()
    phases: Mapping[str, Sum] = field(default_factory=dict)
    certificates: Sum = Sum()
    events: Mapping[EventType, int] = field(default_factory=dict)
    last: LastRound | None = None
    certified_round: int = 0
    """round of the newest certificate; 0 for none"""
    certified: CertificateEntry | None = None
    """that certificate, over all modules"""

    def with_report(self, report: RoundReport) -> Tally:
        """With a round that has just been completed or certified, or was stored before."""
        tally, certificate = self, report.certificate
        if self.last is None or report.round >= self.last.round:
            tally = replace(tally, last=LastRound.of(report))
        if certificate is not None and report.round >= self.certified_round:
            tally = replace(tally, certified_round=report.round, certified=certificate.overall)
        return tally

    def with_event(self, event: RunEvent) -> Tally:
        """With one more event."""
        counted = {**self.events, event.type: self.events.get(event.type, 0) + 1}
        return replace(self, events=counted)

    def with_certificate(self, seconds: float) -> Tally:
        """With the time that a round's certificate took."""
        return replace(self, certificates=self.certificates.plus(seconds))

    def with_round(self, report: RoundReport) -> Tally:
        """With the times of a round that has just been completed."""
        phases = dict(self.phases)
        for phase, seconds in report.phase_seconds.items():
            phases[phase] = phases.get(phase, Sum()).plus(seconds)
        rounds = self.rounds.plus(sum(report.phase_seconds.values()))
        return replace(self, rounds=rounds, phases=phases)


class RoundTallies:
    """The tallies of all runs, by run id."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def of(self, run_id: str) -> Tally:
        """A run's tally; an empty one before anything has happened."""
        return self._tallies.get(run_id, Tally())

    def restore(self, run_id: str, report: RoundReport | None) -> None:
        """Takes over the last round of a stored run; its times were another process's."""
        if report is not None:
            self._tallies[run_id] = self.of(run_id).with_report(report)

    def committed(
        self, state: RunState, events: Sequence[RunEvent], reports: Sequence[RoundReport]
    ) -> None:
        """See Observer."""
        tally = self.of(state.run_id)
        by_round = {report.round: report for report in reports}
        for report in reports:
            tally = tally.with_report(report)
        for event in events:
            tally = tally.with_event(event)
            if event.type is EventType.ROUND_COMPLETED:
                tally = tally.with_round(by_round[event.round])
            elif event.type is EventType.CERTIFICATE_READY:
                # Its round has no report yet while workers evaluate.
                tally = tally.with_certificate(float(str(event.detail["seconds"])))
        self._tallies[state.run_id] = tally
