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

from aggregator_service.rounds.course import (
    advance,
    begin,
    close_round,
    complete_round,
    evaluate,
    fail,
    leave_phase,
    publish,
    reassign_initializer,
    replace_lost,
    settle,
    skip_refining,
    wait_again,
)
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
    set_worker_state,
)
from aggregator_service.rounds.state import RunState, UpdateRecord
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.pooling import pooled_metric
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

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
        # Between two rounds come the updates that are late, where they count.
        UpdateCommitted: _LIVE - {_P.CREATED},
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
    return advance(Transition(state=state, facts=(Fact(type=EventType.RUN_STARTED),)), now)


def _run_stopped(state: RunState, event: RunStopped, now: float) -> Transition:
    state = replace(state, phase=_P.STOPPED, reason=event.reason, deadline=None, assigned={})
    fact = Fact(type=EventType.RUN_STOPPED, round=state.round, detail={"reason": event.reason})
    return Transition(state=state, facts=(fact,))


# --- workers -----------------------------------------------------------------------------


def _worker_registered(state: RunState, event: WorkerRegistered, now: float) -> Transition:
    state, fact = register_worker(state, event)
    return Transition(state=state, facts=(fact,))


def _adapter_confirmed(state: RunState, event: AdapterConfirmed, now: float) -> Transition:
    state, facts = confirm_adapter(state, event)
    return advance(Transition(state=state, facts=facts), now)


def _worker_lost(state: RunState, event: WorkerLost, now: float) -> Transition:
    if not state.is_expected(event.worker):
        return Transition(state=state)
    state = set_worker_state(state, event.worker, WorkerState.LOST)
    fact = Fact(type=EventType.WORKER_LOST, round=state.round, worker=event.worker)
    return replace_lost(Transition(state=state, facts=(fact,)), event.worker, now)


def _worker_returned(state: RunState, event: WorkerReturned, now: float) -> Transition:
    worker = state.workers[event.worker]
    if worker.state is not WorkerState.LOST:
        return Transition(state=state)
    # It kept its process, so what it has confirmed is still attached.
    to = WorkerState.READY if worker.confirmed else WorkerState.JOINING
    state = set_worker_state(state, event.worker, to)
    fact = Fact(type=EventType.WORKER_READY, round=state.round, worker=event.worker)
    return advance(Transition(state=state, facts=(fact,)), now)


def _worker_left(state: RunState, event: WorkerLeft, now: float) -> Transition:
    if state.workers[event.worker].state is WorkerState.LEFT:
        return Transition(state=state)
    state = set_worker_state(state, event.worker, WorkerState.LEFT)
    in_hand = {name: task for name, task in state.assigned.items() if name != event.worker}
    state = replace(state, assigned=in_hand)
    fact = Fact(
        type=EventType.WORKER_LEFT,
        round=state.round,
        worker=event.worker,
        detail={"reason": event.reason},
    )
    return settle(Transition(state=state, facts=(fact,)), now)


# --- rounds ------------------------------------------------------------------------------


def _update_committed(state: RunState, event: UpdateCommitted, now: float) -> Transition:
    name = event.update.worker
    if state.phase is _P.REFINING and name == state.refiner:
        return _refinement_committed(state, event, now)
    if state.phase is _P.INITIALIZING:
        return _initial_committed(state, event, now)
    task = state.assigned.get(name)
    if task is None or task.round != event.update.round:
        raise _overtaken(state, event.update, task.round if task else None)
    # Between two rounds it counts in the one to come.
    counts_in = state.round if state.phase is _P.TRAINING else state.round + 1
    update = replace(
        event.update,
        round=counts_in,
        staleness=counts_in - task.round,
        elapsed_seconds=max(0.0, now - task.started),
    )
    worker = state.workers[name]
    worker = replace(
        worker,
        num_updates=worker.num_updates + 1,
        # A worker that has pruned its adapter keeps the lower rank.
        rank=min(worker.rank, update.rank),
        num_examples=update.num_examples,
        loss=update.metrics.get("train_loss", worker.loss),
    )
    state = replace(
        state.with_worker(worker),
        assigned={other: a for other, a in state.assigned.items() if other != name},
    )
    if state.phase is _P.TRAINING:
        state = replace(state, updates={**state.updates, name: update})
    else:
        state = replace(state, carried={**state.carried, name: update})
    transition = Transition(state=state, facts=(_committed(update),), updates=(update,))
    return settle(transition, now) if state.phase is _P.TRAINING else transition


def _initial_committed(state: RunState, event: UpdateCommitted, now: float) -> Transition:
    update = replace(event.update, elapsed_seconds=max(0.0, now - state.phase_started))
    if update.round != 0 or update.worker not in state.cohort:
        raise _overtaken(state, update, None)
    state = replace(state, updates={update.worker: update})
    return settle(Transition(state=state, facts=(_committed(update),), updates=(update,)), now)


def _overtaken(state: RunState, update: UpdateRecord, expected: int | None) -> FedLoraError:
    """The round closed, or the cohort changed, while the bytes were on their way."""
    if expected is None:
        counted = update.worker in state.updates or update.worker in state.carried
        what = f"{'has counted one' if counted else 'expects none'} of it"
    else:
        what = f"expects one for round {expected}"
    return FedLoraError(
        Reason.WRONG_ROUND,
        f"worker {update.worker!r} submits for round {update.round}, and the run, "
        f"{state.phase.value} in round {state.round}, {what}",
        hint="Drop the update and ask for the next task",
    )


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
            "digest": update.digest,
            "rank": update.rank,
            "metrics": dict(update.metrics),
            **({"staleness": update.staleness} if update.staleness else {}),
        },
    )


def _adapter_aggregated(state: RunState, event: AdapterAggregated, now: float) -> Transition:
    state = leave_phase(state, now)
    transition = publish(Transition(state=state), event.adapter)
    if state.spec.rounds.certifies(state.round):
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
    return evaluate(transition, now)


def _adapter_refined(state: RunState, event: AdapterRefined, now: float) -> Transition:
    state = leave_phase(state, now)
    return evaluate(publish(Transition(state=state), event.adapter), now)


def _aggregation_failed(state: RunState, event: AggregationFailed, now: float) -> Transition:
    return fail(Transition(state=state), f"round {state.round}: {event.reason}")


def _evaluation_reported(state: RunState, event: EvaluationReported, now: float) -> Transition:
    if event.worker in state.evaluations:
        return Transition(state=state)
    state = replace(state, evaluations={**state.evaluations, event.worker: event.evaluations})
    loss = _loss(event.evaluations)
    if loss is not None:
        state = state.with_worker(replace(state.workers[event.worker], loss=loss))
    fact = Fact(
        type=EventType.EVALUATION_REPORTED,
        round=state.round,
        worker=event.worker,
        detail={
            f"{e.label}_{name}": value
            for e in event.evaluations
            for name, value in {**e.metrics, "num_examples": float(e.num_examples)}.items()
        },
    )
    return settle(Transition(state=state, facts=(fact,)), now)


def _deadline_checked(state: RunState, event: DeadlineChecked, now: float) -> Transition:
    if state.deadline is None or now < state.deadline:
        return Transition(state=state)
    if state.phase is _P.EVALUATING:
        return complete_round(Transition(state=state), now)
    if state.phase is _P.REFINING:
        return skip_refining(Transition(state=state), now)
    if state.phase is _P.INITIALIZING:
        return reassign_initializer(Transition(state=state), now)
    quorum, seconds = state.spec.rounds.quorum, state.spec.rounds.deadline_seconds
    if state.phase is _P.WAITING:
        there = len(state.ready_workers)
        if there >= quorum:
            return begin(Transition(state=state), now)
        text = f"after round {state.round}: {there} of {quorum} workers needed after {seconds:g} s"
        return wait_again(Transition(state=state), text, now)
    if len(state.updates) >= quorum:
        return close_round(Transition(state=state), now)
    came = len(state.updates)
    text = f"round {state.round}: {came} of {quorum} updates needed after {seconds:g} s"
    return wait_again(Transition(state=state), text, now)


def _loss(evaluations: tuple[Evaluation, ...]) -> float | None:
    """The published adapter's loss on the worker's own data; None if it was not measured."""
    published = (e for e in evaluations if e.scope is EvaluationScope.GLOBAL)
    return pooled_metric((e for e in published if e.split is EvaluationSplit.HELD_OUT), "loss")


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
