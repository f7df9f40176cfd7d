"""How a run moves on from phase to phase, and what it says of it.

The functions here take a transition in the making and add to it. They are pure, as all of this
package; `machine` decides which event calls which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aggregator_service.rounds.best_round import judged, out_of_patience
from aggregator_service.rounds.events import Aggregate, Certify, Fact, Transition
from aggregator_service.rounds.forgetting import best_scores
from aggregator_service.rounds.outcome import round_report
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.rounds.tasks_in_hand import (
    assign,
    drop_late,
    fill_up,
    hand_out,
    is_complete,
    open_round,
    stand_in,
)
from fedlora.errors import FedLoraError
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType
from fedlora.runs.rounds import BelowQuorum, RoundEngine

__all__ = [
    "advance",
    "begin",
    "close_round",
    "complete_round",
    "evaluate",
    "fail",
    "leave_phase",
    "publish",
    "reassign_initializer",
    "replace_lost",
    "settle",
    "skip_refining",
    "wait_again",
]

_P = RunPhase


def settle(transition: Transition, now: float) -> Transition:
    """Closes the phase if nobody it waits for is left."""
    state = transition.state
    if state.phase is _P.INITIALIZING:
        (initializer,) = state.cohort
        if initializer in state.updates:
            return _finish_initializing(transition, now)
        if not state.is_expected(initializer):
            return reassign_initializer(transition, now)
    elif state.phase is _P.TRAINING:
        if is_complete(state):
            return close_round(transition, now)
        return _give_out(transition, now)
    elif state.phase is _P.REFINING:
        if state.refinement is None and not state.is_expected(state.refiner):
            return skip_refining(transition, now)
    elif state.phase is _P.EVALUATING:
        missing = [
            n for n in state.evaluators if n not in state.evaluations and state.is_expected(n)
        ]
        if not missing:
            return complete_round(transition, now)
    return transition


def advance(transition: Transition, now: float) -> Transition:
    """Goes on where a run waits for workers and there are enough, or hands out free tasks."""
    state = transition.state
    if state.phase is _P.TRAINING:
        return _give_out(transition, now)
    enough = len(state.ready_workers) >= state.spec.rounds.min_workers
    if state.phase is not _P.WAITING or not enough:
        return transition
    return begin(transition, now)


def replace_lost(transition: Transition, lost: str, now: float) -> Transition:
    """Gives a lost worker's place in the open round to another, and closes what nobody is left for.

    Where the run is not training, there are no places.
    """
    state = transition.state
    if state.phase is _P.TRAINING:
        try:
            state, other = stand_in(state, lost, now)
        except FedLoraError as error:
            return _no_sample(transition, state.round, error)
        if other:
            transition = _reassigned(replace(transition, state=state), {other: lost})
    return settle(transition, now)


def _give_out(transition: Transition, now: float) -> Transition:
    """Lets nobody idle whom the open round could use."""
    try:
        state, stand_ins = fill_up(hand_out(transition.state, now), now)
    except FedLoraError as error:
        return _no_sample(transition, transition.state.round, error)
    return _reassigned(replace(transition, state=state), stand_ins)


def _reassigned(transition: Transition, stand_ins: Mapping[str, str]) -> Transition:
    """Says of each worker that took another's place, whose."""
    facts = tuple(
        Fact(
            type=EventType.TASK_REASSIGNED,
            round=transition.state.round,
            worker=name,
            detail={"from": missing},
        )
        for name, missing in stand_ins.items()
    )
    return replace(transition, facts=(*transition.facts, *facts))


def _no_sample(transition: Transition, round: int, error: FedLoraError) -> Transition:
    """Fails the run whose sampler takes nobody: it would take nobody the next time either.

    What brought it about, an update or a worker that came, stays as it is.
    """
    return fail(transition, f"round {round}: {error}")


def begin(transition: Transition, now: float) -> Transition:
    """Begins the next round, or the making of version 0, with the workers that are ready."""
    state = transition.state
    if state.version is None:
        state = replace(
            state,
            phase=_P.INITIALIZING,
            phase_started=now,
            cohort=state.ready_workers[:1],
            updates={},
            deadline=now + state.spec.rounds.deadline_seconds,
        )
        return replace(transition, state=state)
    try:
        state = open_round(replace(state, phase=_P.TRAINING), now)
    except FedLoraError as error:
        return _no_sample(transition, state.round + 1, error)
    fact = Fact(
        type=EventType.ROUND_STARTED,
        round=state.round,
        detail={"cohort": list(state.cohort), "base_version": state.version},
    )
    begun = replace(transition, state=state, facts=(*transition.facts, fact))
    # What came between two rounds may be all that this one waits for.
    return settle(begun, now)


def wait_again(transition: Transition, reason: str, now: float) -> Transition:
    """Below quorum at a deadline: waits once more, or fails, as the run's rules say."""
    state, rules = transition.state, transition.state.spec.rounds
    over = 0 < rules.max_extensions <= state.extensions
    if rules.below_quorum is BelowQuorum.FAIL or over:
        waited = f", and the deadline was extended {state.extensions} times" if over else ""
        return fail(transition, reason + waited)
    before = state.cohort
    if state.phase is _P.TRAINING and rules.engine is RoundEngine.SYNC:
        # Whoever became ready meanwhile may stand in for those that did not come.
        ready = set(state.ready_workers) - {*state.assigned, *state.updates}
        state = assign(state, tuple(sorted(ready)), now)
    state = replace(state, extensions=state.extensions + 1, deadline=now + rules.deadline_seconds)
    fact = Fact(
        type=EventType.DEADLINE_EXTENDED,
        round=state.round,
        detail={
            "reason": reason,
            "joined": sorted(set(state.cohort) - set(before)),
            "extensions": state.extensions,
        },
    )
    return replace(transition, state=state, facts=(*transition.facts, fact))


def skip_refining(transition: Transition, now: float) -> Transition:
    """Goes on with what the round came to: the stage is a gain, not a condition."""
    return evaluate(replace(transition, state=leave_phase(transition.state, now)), now)


def reassign_initializer(transition: Transition, now: float) -> Transition:
    """Asks another worker for version 0, or waits for one."""
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
        digest=update.digest,
        total_bytes=update.total_bytes,
        rank=update.rank,
    )
    state = replace(state, phase=_P.WAITING, phase_started=now, deadline=None)
    return advance(publish(replace(transition, state=state), adapter), now)


def publish(transition: Transition, adapter: AdapterRecord) -> Transition:
    """Makes an adapter the newest version."""
    state = replace(transition.state, version=adapter.version, adapter=adapter)
    fact = Fact(
        type=EventType.ADAPTER_PUBLISHED,
        round=adapter.round,
        detail={
            "adapter_version": adapter.version,
            "digest": adapter.digest,
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


def close_round(transition: Transition, now: float) -> Transition:
    """Takes the updates that there are: they are what the next version is made of."""
    state = drop_late(leave_phase(transition.state, now))
    fact = Fact(
        type=EventType.ROUND_CLOSED,
        round=state.round,
        detail={
            "updates": sorted(state.updates),
            "missing": sorted(set(state.cohort) - set(state.updates)),
        },
    )
    if not any(u.num_examples for u in state.updates.values()):
        return fail(
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


def complete_round(transition: Transition, now: float) -> Transition:
    """Reports the round and goes on to the next, or to the end."""
    state = transition.state
    if state.phase is _P.EVALUATING:
        state = leave_phase(state, now)
    report = round_report(state)
    state, rules = judged(state, report.metrics), state.spec.rounds
    if (stream := state.spec.continual) is not None:
        best = best_scores(stream, state.round, state.best_by_experience, report.metrics)
        state = replace(state, best_by_experience=best)
    detail: dict[str, object] = {**report.metrics, **_best_round(state)}
    fact = Fact(type=EventType.ROUND_COMPLETED, round=state.round, detail=detail)
    done = replace(
        transition,
        state=state,
        facts=(*transition.facts, fact),
        reports=(*transition.reports, report),
    )
    if state.round >= rules.num_rounds:
        return _complete(done, "", now)
    if reason := out_of_patience(state, report.metrics):
        return _complete(done, reason, now)
    # A run that has begun does not wait for ever for a worker that is gone.
    deadline = now + rules.deadline_seconds
    state = replace(state, phase=_P.WAITING, phase_started=now, deadline=deadline, extensions=0)
    return advance(replace(done, state=state), now)


def _complete(transition: Transition, reason: str, now: float) -> Transition:
    """Ends the run with its last adapter; the reason is empty after the last of its rounds."""
    state = replace(
        transition.state, phase=_P.COMPLETED, reason=reason, phase_started=now, deadline=None
    )
    detail: dict[str, object] = {
        "num_rounds": state.round,
        "adapter_version": state.version,
        **_best_round(state),
    }
    if reason:
        detail["reason"] = reason
    fact = Fact(type=EventType.RUN_COMPLETED, round=state.round, detail=detail)
    effects = transition.effects
    # That this round is the last was not known when its version was published.
    if state.certifies(state.round) and not state.spec.rounds.certifies(state.round):
        effects = (*effects, Certify(state.round))
    return replace(transition, state=state, facts=(*transition.facts, fact), effects=effects)


def _best_round(state: RunState) -> dict[str, object]:
    return {} if state.best is None else {"best_round": state.best.round}


def fail(transition: Transition, reason: str) -> Transition:
    """Ends the run without its last adapter."""
    state = replace(transition.state, phase=_P.FAILED, reason=reason, deadline=None, assigned={})
    fact = Fact(type=EventType.RUN_FAILED, round=state.round, detail={"reason": reason})
    return replace(transition, state=state, facts=(*transition.facts, fact))


def leave_phase(state: RunState, now: float) -> RunState:
    """Notes how long the phase took."""
    seconds = max(0.0, now - state.phase_started)
    return replace(state, phase_seconds={**state.phase_seconds, state.phase.value: seconds})


def evaluate(transition: Transition, now: float) -> Transition:
    """Has the newest version scored by the workers that are free, where it is due."""
    state, rules = transition.state, transition.state.spec.rounds
    due = state.round % rules.evaluate_every == 0 or state.round == rules.num_rounds
    free = tuple(name for name in state.ready_workers if name not in state.assigned)
    if rules.evaluate and due and free:
        state = replace(
            state,
            phase=_P.EVALUATING,
            phase_started=now,
            evaluators=free,
            evaluations={},
            deadline=now + rules.deadline_seconds,
        )
        return replace(transition, state=state)
    return complete_round(replace(transition, state=state), now)
