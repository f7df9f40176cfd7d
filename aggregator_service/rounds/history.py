"""A run's history as it is stored: facts with their numbers and times."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator_service.rounds.events import Fact
from fedlora.runs.report import Certificate, EventType, RunEvent

__all__ = ["as_events", "certificate_ready"]


def as_events(facts: Sequence[Fact], *, after: int, time: float) -> tuple[RunEvent, ...]:
    """Facts as the events that follow one another.

    Args:
        facts: of one step.
        after: number of the last event before them.
        time: seconds since 1970.
    """
    return tuple(
        RunEvent(
            sequence=after + 1 + i,
            type=fact.type,
            time=time,
            round=fact.round,
            worker=fact.worker,
            detail=fact.detail,
        )
        for i, fact in enumerate(facts)
    )


def certificate_ready(round: int, certificate: Certificate) -> Fact:
    """The fact that a round's certificate is there, with its figures over all layers."""
    overall = certificate.overall
    return Fact(
        type=EventType.CERTIFICATE_READY,
        round=round,
        detail={
            "relative_error": overall.relative_error,
            "factor_mean_error": overall.factor_mean_error,
            "lower_bound": overall.lower_bound,
            "relative_error_vs_change": overall.relative_error_vs_change,
            "factor_mean_error_vs_change": overall.factor_mean_error_vs_change,
            "lower_bound_vs_change": overall.lower_bound_vs_change,
            "seconds": certificate.seconds,
        },
    )
