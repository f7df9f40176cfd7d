"""A run as operators see it."""

from __future__ import annotations

from aggregator_service.rounds.state import RunState
from fedlora.runs.report import Run, WorkerInfo

__all__ = ["describe"]


def describe(state: RunState) -> Run:
    """What there is to know of a run, without secrets."""
    return Run(
        run_id=state.run_id,
        spec=state.spec,
        phase=state.phase,
        round=state.round,
        adapter_version=state.version,
        workers=tuple(
            WorkerInfo(
                name=w.name,
                state=w.state,
                capabilities=w.capabilities,
                rank=w.rank,
                data_slot=w.slot,
                num_updates=w.num_updates,
                num_tasks=w.num_tasks,
            )
            for _, w in sorted(state.workers.items())
        ),
        created_at=state.created_at,
        reason=state.reason,
        layout=state.layout,
        best=state.best,
    )
