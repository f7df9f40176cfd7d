"""What a round comes to: the report of it all."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator_service.rounds.forgetting import forgetting
from aggregator_service.rounds.scores import pool_scores
from aggregator_service.rounds.state import RunState, UpdateRecord
from fedlora.runs.report import RoundReport, UpdateReport, WorkerEvaluation

__all__ = ["round_report"]


def round_report(state: RunState) -> RoundReport:
    """The report of the round that a state has just completed, without its certificate."""
    updates = [state.updates[name] for name in sorted(state.updates)]
    adapter = state.adapter
    if adapter is None or not updates:
        raise AssertionError("a round is completed only after its adapter was published")
    return RoundReport(
        round=state.round,
        method=state.spec.method.name,
        base_version=adapter.base_version or 0,
        adapter_version=adapter.version,
        adapter_digest=adapter.digest,
        cohort=state.cohort,
        updates=tuple(
            UpdateReport(
                worker=u.worker,
                num_examples=u.num_examples,
                weight=adapter.weights.get(u.worker, 0.0),
                share=adapter.shares.get(u.worker),
                total_bytes=u.total_bytes,
                digest=u.digest,
                rank=u.rank,
                metrics=u.metrics,
                evaluations=u.evaluations,
                elapsed_seconds=u.elapsed_seconds,
                staleness=u.staleness,
            )
            for u in updates
        ),
        evaluations=tuple(
            WorkerEvaluation(worker=name, evaluations=state.evaluations[name])
            for name in sorted(state.evaluations)
        ),
        phase_seconds=state.phase_seconds,
        bytes_up=sum(u.total_bytes for u in (*updates, *_refinement(state))),
        metrics=_scores(state, updates),
    )


def _scores(state: RunState, updates: Sequence[UpdateRecord]) -> dict[str, float]:
    pooled = pool_scores({u.worker: u.evaluations for u in updates}, state.evaluations)
    if state.spec.continual is not None:
        stream, before = state.spec.continual, state.best_by_experience
        pooled |= forgetting(stream, state.round, before, pooled)
    return pooled


def _refinement(state: RunState) -> tuple[UpdateRecord, ...]:
    return () if state.refinement is None else (state.refinement,)
