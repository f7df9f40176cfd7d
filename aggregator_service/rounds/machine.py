"""The life of a run as a pure function: `step(state, event, now) -> Transition`.

Rules
    1. Everything that decides what a run does next is in this package, and nothing else is.
    2. A step takes values and returns values: no clock, no disk, no socket, no randomness that
       the run's seed does not decide. `now` is the run's own clock, in seconds.
    3. An event that TABLE does not list for the phase changes nothing and raises WRONG_PHASE.
    4. What a step returns becomes durable as one transaction before anybody learns of it; only
       then do its effects begin. A restarted server repeats the effects of the phase it finds
       (`pending_effects`), so an effect may run twice and must then give the same result.

A run goes  created -> waiting -> initializing -> waiting -> { training -> aggregating ->
(refining ->) evaluating -> waiting }... -> completed.  It passes `waiting` between two rounds and
stays there while too few workers are ready; it passes `refining` where the method has a stage on
the server's own data and a worker that holds such data is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from aggregator_service.rounds.events import (
    AdapterAggregated,
    AdapterConfirmed,
    AdapterRefined,
    Aggregate,
    AggregationFailed,
    Certify,
    DeadlineChecked,
    Effect,
    EvaluationReported,
    Event,
    Fact,
    Refine,
    RunStarted,
    RunStopped,
    Transition,
    UpdateCommitted,
    WorkerLeft,
    WorkerLost,
    WorkerRegistered,
    WorkerReturned,
)
from aggregator_service.rounds.membership import (
    confirm_adapter,
    register_worker,
    sample_cohort,
    set_worker_state,
)
from aggregator_service.rounds.outcome import round_report
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.spec import BelowQuorum, RunPhase

__all__ = ["TABLE", "pending_effects", "step"]

_P = RunPhase
_LIVE = frozenset(p for p in RunPhase if not p.is_final)
_ANY = frozenset(RunPhase)

TABLE: Mapping[type[Any], frozenset[RunPhase]] = MappingProxyType(
    {
        RunStarted: frozenset({_P.CREATED}),
        RunStopped: _LIVE,
        # A worker may come to a run that is over: it is told to stop.
        WorkerRegistered: _ANY,
        AdapterConfirmed: _ANY,
        WorkerLost: _ANY,
        WorkerReturned: _ANY,
        WorkerLeft: _ANY,
        UpdateCommitted: frozenset({_P.INITIALIZING, _P.TRAINING, _P.REFINING}),
        AdapterAggregated: frozenset({_P.AGGREGATING}),
        AdapterRefined: frozenset({_P.REFINING}),
        AggregationFailed: frozenset({_P.AGGREGATING, _P.REFINING}),
        EvaluationReported: frozenset({_P.EVALUATING}),
        DeadlineChecked: _LIVE,
    }
)
"""event -> phases in which it can happen; an absent entry is the error"""


def step(state: RunState, event: Event, now: float) -> Transition:
    """Applies one event.

    Raises:
        FedLoraError: WRONG_PHASE for an event the phase does not allow, or the reason for which
            the event itself is refused. The state passed in is untouched.
    """
    if state.phase not in TABLE[type(event)]:
        raise FedLoraError(
            Reason.WRONG_PHASE,
            f"run {state.spec.name!r} is {state.phase.value}; "
            f"{_words(type(event).__name__)} is possible only while it is "
            f"{', '.join(sorted(p.value for p in TABLE[type(event)]))}",
        )
    return _HANDLERS[type(event)](state, event, now)


def pending_effects(state: RunState) -> tuple[Effect, ...]:
    """The effects a restarted server must begin again."""
    if state.phase is _P.AGGREGATING:
        return (Aggregate(state.round),)
    if state.phase is _P.REFINING and state.refinement is not None:
        return (Refine(state.round),)
    return ()


# --- operators ---------------------------------------------------------------------------


def _run_started(state: RunState, event: RunStarted, now: float) -> Transition:
    state = replace(state, phase=_P.WAITING, phase_started=now)
    return _advance(Transition(state=state, facts=(Fact(type=EventType.RUN_STARTED),)), now)


def _run_stopped(state: RunState, event: RunStopped, now: float) -> Transition:
    state = replace(state, phase=_P.STOPPED, reason=event.reason, deadline=None)
    fact = Fact(type=EventType.RUN_STOPPED, round=state.round, detail={"reason": event.reason})
    return Transition(state=state, facts=(fact,))


# --- workers -----------------------------------------------------------------------------


def _worker_registered(state: RunState, event: WorkerRegistered, now: float) -> Transition:
    state, fact = register_worker(state, event)
    return Transition(state=state, facts=(fact,))


def _adapter_confirmed(state: RunState, event: AdapterConfirmed, now: float) -> Transition:
    state, facts = confirm_adapter(state, event)
    return _advance(Transition(state=state, facts=facts), now)


def _worker_lost(state: RunState, event: WorkerLost, now: float) -> Transition:
    worker = state.workers[event.worker]
    if worker.state not in (WorkerState.JOINING, WorkerState.READY):
        return Transition(state=state)
    state = set_worker_state(state, event.worker, WorkerState.LOST)
    fact = Fact(type=EventType.WORKER_LOST, round=state.round, worker=event.worker)
    return _settle(Transition(state=state, facts=(fact,)), now)


def _worker_returned(state: RunState, event: WorkerReturned, now: float) -> Transition:
    worker = state.workers[event.worker]
    if worker.state is not WorkerState.LOST:
        return Transition(state=state)
    # It kept its process, so what it has confirmed is still attached.
    to = WorkerState.READY if worker.confirmed else WorkerState.JOINING
    state = set_worker_state(state, event.worker, to)
    fact = Fact(type=EventType.WORKER_READY, round=state.round, worker=event.worker)
    return _advance(Transition(state=state, facts=(fact,)), now)


def _worker_left(state: RunState, event: WorkerLeft, now: float) -> Transition:
    if state.workers[event.worker].state is WorkerState.LEFT:
        return Transition(state=state)
    state = set_worker_state(state, event.worker, WorkerState.LEFT)
    fact = Fact(
        type=EventType.WORKER_LEFT,
        round=state.round,
        worker=event.worker,
        detail={"reason": event.reason},
    )
    return _settle(Transition(state=state, facts=(fact,)), now)


# --- rounds ------------------------------------------------------------------------------


def _update_committed(state: RunState, event: UpdateCommitted, now: float) -> Transition:
    if state.phase is _P.REFINING:
        return _refinement_committed(state, event, now)
    open_round = 0 if state.phase is _P.INITIALIZING else state.round
    name = event.update.worker
    if event.update.round != open_round or name not in state.cohort or name in state.updates:
        # The round closed, or the cohort changed, while the bytes were on their way.
        raise FedLoraError(
            Reason.WRONG_ROUND,
            f"worker {name!r} submits for round {event.update.round}, but round {open_round} "
            f"{'has its update' if name in state.updates else 'is open, without it'}",
            hint="Drop the update and ask for the next task",
        )
    update = replace(event.update, elapsed_seconds=max(0.0, now - state.phase_started))
    worker = state.workers[update.worker]
    # A worker that has pruned its adapter keeps the lower rank.
    state = state.with_worker(
        replace(worker, num_updates=worker.num_updates + 1, rank=min(worker.rank, update.rank))
    )
    state = replace(state, updates={**state.updates, update.worker: update})
    transition = Transition(state=state, facts=(_committed(update),), updates=(update,))
    return _settle(transition, now)


def _refinement_committed(state: RunState, event: UpdateCommitted, now: float) -> Transition:
    update = replace(event.update, elapsed_seconds=max(0.0, now - state.phase_started))
    if update.round != state.round or update.worker != state.refiner or state.refinement:
        raise FedLoraError(
            Reason.WRONG_ROUND,
            f"worker {update.worker!r} submits a refinement of round {update.round}; round "
            f"{state.round} {'has one' if state.refinement else f'expects {state.refiner!r}'}",
            hint="Drop the update and ask for the next task",
        )
    state = replace(state, refinement=update, deadline=None)
    return Transition(
        state=state,
        facts=(_committed(update),),
        updates=(update,),
        effects=(Refine(state.round),),
    )


def _committed(update: UpdateRecord) -> Fact:
    return Fact(
        type=EventType.UPDATE_COMMITTED,
        round=update.round,
        worker=update.worker,
        detail={
            "num_examples": update.num_examples,
            "total_bytes": update.total_bytes,
            "sha256": update.sha256,
            "rank": update.rank,
            "metrics": dict(update.metrics),
        },
    )


def _adapter_aggregated(state: RunState, event: AdapterAggregated, now: float) -> Transition:
    state = _leave_phase(state, now)
    transition = _publish(Transition(state=state), event.adapter)
    transition = replace(transition, effects=(*transition.effects, Certify(state.round)))
    state = transition.state
    if state.plan.refined and state.ready_refiners:
        state = replace(
            state,
            phase=_P.REFINING,
            phase_started=now,
            refiner=state.ready_refiners[0],
            deadline=now + state.spec.rounds.deadline_seconds,
        )
        return replace(transition, state=state)
    return _evaluate(transition, now)


def _adapter_refined(state: RunState, event: AdapterRefined, now: float) -> Transition:
    state = _leave_phase(state, now)
    return _evaluate(_publish(Transition(state=state), event.adapter), now)


def _evaluate(transition: Transition, now: float) -> Transition:
    state = transition.state
    if state.spec.rounds.evaluate and state.ready_workers:
        state = replace(
            state,
            phase=_P.EVALUATING,
            phase_started=now,
            evaluators=state.ready_workers,
            evaluations={},
            deadline=now + state.spec.rounds.deadline_seconds,
        )
        return replace(transition, state=state)
    return _complete_round(replace(transition, state=state), now)


def _aggregation_failed(state: RunState, event: AggregationFailed, now: float) -> Transition:
    return _fail(Transition(state=state), f"round {state.round}: {event.reason}")


def _evaluation_reported(state: RunState, event: EvaluationReported, now: float) -> Transition:
    if event.worker in state.evaluations:
        return Transition(state=state)
    state = replace(state, evaluations={**state.evaluations, event.worker: event.evaluations})
    fact = Fact(
        type=EventType.EVALUATION_REPORTED,
        round=state.round,
        worker=event.worker,
        detail={
            f"{e.split.value}_{name}": value
            for e in event.evaluations
            for name, value in {**e.metrics, "num_examples": float(e.num_examples)}.items()
        },
    )
    return _settle(Transition(state=state, facts=(fact,)), now)


def _deadline_checked(state: RunState, event: DeadlineChecked, now: float) -> Transition:
    if state.deadline is None or now < state.deadline:
        return Transition(state=state)
    if state.phase is _P.EVALUATING:
        return _complete_round(Transition(state=state), now)
    if state.phase is _P.REFINING:
        return _skip_refining(Transition(state=state), now)
    if state.phase is _P.INITIALIZING:
        return _reassign_initializer(Transition(state=state), now)
    rules = state.spec.rounds
    if len(state.updates) >= rules.quorum:
        return _close_round(Transition(state=state), now)
    text = (
        f"round {state.round}: {len(state.updates)} of {rules.quorum} updates needed after "
        f"{rules.deadline_seconds:g} s"
    )
    if rules.below_quorum is BelowQuorum.FAIL:
        return _fail(Transition(state=state), text)
    # Whoever became ready meanwhile may stand in for those that did not come.
    cohort = tuple(sorted({*state.cohort, *state.ready_workers}))
    joined = sorted(set(cohort) - set(state.cohort))
    state = replace(
        state,
        cohort=cohort,
        extensions=state.extensions + 1,
        deadline=now + rules.deadline_seconds,
    )
    fact = Fact(
        type=EventType.DEADLINE_EXTENDED,
        round=state.round,
        detail={"reason": text, "joined": joined, "extensions": state.extensions},
    )
    return Transition(state=state, facts=(fact,))


# --- moving on ---------------------------------------------------------------------------


def _settle(transition: Transition, now: float) -> Transition:
    """Closes the phase if nobody it waits for is left."""
    state = transition.state
    if state.phase is _P.INITIALIZING:
        (initializer,) = state.cohort
        if initializer in state.updates:
            return _finish_initializing(transition, now)
        if not _is_expected(state, initializer):
            return _reassign_initializer(transition, now)
    elif state.phase is _P.TRAINING:
        # A lost worker may come back until the deadline; one that has left will not.
        missing = [
            n
            for n in state.cohort
            if n not in state.updates and state.workers[n].state is not WorkerState.LEFT
        ]
        if not missing and len(state.updates) >= state.spec.rounds.quorum:
            return _close_round(transition, now)
    elif state.phase is _P.REFINING:
        if state.refinement is None and not _is_expected(state, state.refiner):
            return _skip_refining(transition, now)
    elif state.phase is _P.EVALUATING:
        missing = [
            n for n in state.evaluators if n not in state.evaluations and _is_expected(state, n)
        ]
        if not missing:
            return _complete_round(transition, now)
    return transition


def _is_expected(state: RunState, name: str) -> bool:
    return state.workers[name].state in (WorkerState.JOINING, WorkerState.READY)


def _advance(transition: Transition, now: float) -> Transition:
    """Leaves WAITING if there are workers enough."""
    state = transition.state
    if state.phase is not _P.WAITING:
        return transition
    ready = state.ready_workers
    if len(ready) < state.spec.rounds.min_workers:
        return transition
    if state.version is None:
        state = replace(
            state,
            phase=_P.INITIALIZING,
            phase_started=now,
            cohort=ready[:1],
            updates={},
            deadline=now + state.spec.rounds.deadline_seconds,
        )
        return replace(transition, state=state)
    round = state.round + 1
    cohort = sample_cohort(state, round)
    state = replace(
        state,
        phase=_P.TRAINING,
        round=round,
        cohort=cohort,
        updates={},
        evaluators=(),
        evaluations={},
        extensions=0,
        refiner="",
        refinement=None,
        phase_seconds={},
        phase_started=now,
        deadline=now + state.spec.rounds.deadline_seconds,
    )
    fact = Fact(
        type=EventType.ROUND_STARTED,
        round=round,
        detail={"cohort": list(cohort), "base_version": state.version},
    )
    return replace(transition, state=state, facts=(*transition.facts, fact))


def _skip_refining(transition: Transition, now: float) -> Transition:
    """Goes on with what the round came to: the stage is a gain, not a condition."""
    return _evaluate(replace(transition, state=_leave_phase(transition.state, now)), now)


def _reassign_initializer(transition: Transition, now: float) -> Transition:
    state = transition.state
    others = [n for n in state.ready_workers if n not in state.cohort] or list(state.ready_workers)
    if others:
        deadline = now + state.spec.rounds.deadline_seconds
        state = replace(state, cohort=(others[0],), phase_started=now, deadline=deadline)
    else:
        state = replace(state, phase=_P.WAITING, cohort=(), phase_started=now, deadline=None)
    return replace(transition, state=state)


def _finish_initializing(transition: Transition, now: float) -> Transition:
    state = transition.state
    (update,) = state.updates.values()
    adapter = AdapterRecord(
        version=0,
        round=0,
        sha256=update.sha256,
        total_bytes=update.total_bytes,
        rank=update.rank,
    )
    state = replace(state, phase=_P.WAITING, phase_started=now, deadline=None)
    return _advance(_publish(replace(transition, state=state), adapter), now)


def _publish(transition: Transition, adapter: AdapterRecord) -> Transition:
    state = replace(transition.state, version=adapter.version, adapter=adapter)
    fact = Fact(
        type=EventType.ADAPTER_PUBLISHED,
        round=adapter.round,
        detail={
            "adapter_version": adapter.version,
            "sha256": adapter.sha256,
            "total_bytes": adapter.total_bytes,
            "rank": adapter.rank,
        },
    )
    return replace(
        transition,
        state=state,
        facts=(*transition.facts, fact),
        adapters=(*transition.adapters, adapter),
    )


def _close_round(transition: Transition, now: float) -> Transition:
    state = _leave_phase(transition.state, now)
    fact = Fact(
        type=EventType.ROUND_CLOSED,
        round=state.round,
        detail={
            "updates": sorted(state.updates),
            "missing": sorted(set(state.cohort) - set(state.updates)),
        },
    )
    if not any(u.num_examples for u in state.updates.values()):
        return _fail(
            replace(transition, state=state, facts=(*transition.facts, fact)),
            f"round {state.round}: no update was trained on any example",
        )
    state = replace(state, phase=_P.AGGREGATING, phase_started=now, deadline=None)
    return replace(
        transition,
        state=state,
        facts=(*transition.facts, fact),
        effects=(*transition.effects, Aggregate(state.round)),
    )


def _complete_round(transition: Transition, now: float) -> Transition:
    state = transition.state
    if state.phase is _P.EVALUATING:
        state = _leave_phase(state, now)
    report = round_report(state)
    fact = Fact(type=EventType.ROUND_COMPLETED, round=state.round, detail=dict(report.metrics))
    facts = [*transition.facts, fact]
    if state.round >= state.spec.rounds.num_rounds:
        state = replace(state, phase=_P.COMPLETED, phase_started=now, deadline=None)
        detail = {"num_rounds": state.round, "adapter_version": state.version}
        facts.append(Fact(type=EventType.RUN_COMPLETED, round=state.round, detail=detail))
    else:
        state = replace(state, phase=_P.WAITING, phase_started=now, deadline=None)
    done = replace(
        transition, state=state, facts=tuple(facts), reports=(*transition.reports, report)
    )
    return _advance(done, now)


def _fail(transition: Transition, reason: str) -> Transition:
    state = replace(transition.state, phase=_P.FAILED, reason=reason, deadline=None)
    fact = Fact(type=EventType.RUN_FAILED, round=state.round, detail={"reason": reason})
    return replace(transition, state=state, facts=(*transition.facts, fact))


def _leave_phase(state: RunState, now: float) -> RunState:
    seconds = max(0.0, now - state.phase_started)
    return replace(state, phase_seconds={**state.phase_seconds, state.phase.value: seconds})


def _words(name: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


_HANDLERS: Mapping[type[Any], Callable[[RunState, Any, float], Transition]] = {
    RunStarted: _run_started,
    RunStopped: _run_stopped,
    WorkerRegistered: _worker_registered,
    AdapterConfirmed: _adapter_confirmed,
    WorkerLost: _worker_lost,
    WorkerReturned: _worker_returned,
    WorkerLeft: _worker_left,
    UpdateCommitted: _update_committed,
    AdapterAggregated: _adapter_aggregated,
    AdapterRefined: _adapter_refined,
    AggregationFailed: _aggregation_failed,
    EvaluationReported: _evaluation_reported,
    DeadlineChecked: _deadline_checked,
}
