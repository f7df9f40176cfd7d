"""Who trains: which workers are given a round's task, and how long its update is waited for.

A task in hand (`RunState.assigned`) is a promise: the update that comes of it will count. It is
given for a round, or, under the buffered and the asynchronous engine, whenever a worker is free
while a round is open. It ends with the update; with the worker's leaving; or when the round has
closed, unless late updates count: then after `max_staleness` more rounds.

A worker that is lost keeps its task, since it may come back with the update done, but nobody waits
for it any longer, and another worker is given the same round where there is one to spare. One that
left in good order has given its task back: it gets it again if it returns while the round is open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aggregator_service.rounds.sampling import cohort_size, sample
from aggregator_service.rounds.state import Assignment, RunState
from fedlora.runs.report import WorkerState
from fedlora.runs.rounds import RoundEngine

__all__ = ["assign", "drop_late", "fill_up", "hand_out", "is_complete", "open_round", "stand_in"]


def open_round(state: RunState, now: float) -> RunState:
    """The next round, with its tasks given out and what came early counted."""
    rules = state.spec.rounds
    state = replace(
        state,
        round=state.round + 1,
        cohort=(),
        updates=state.carried,
        carried={},
        evaluators=(),
        evaluations={},
        extensions=0,
        refiner="",
        refinement=None,
        phase_seconds={},
        phase_started=now,
        deadline=now + rules.deadline_seconds,
    )
    if rules.engine is not RoundEngine.SYNC:
        return hand_out(state, now)
    free = _free(state)
    return assign(state, sample(state, free, cohort_size(rules) or len(free)), now)


def hand_out(state: RunState, now: float) -> RunState:
    """Gives the open round to workers that are free, as many as may train at a time.

    Only where a round has no cohort: under the buffered and the asynchronous engine.
    """
    rules = state.spec.rounds
    if rules.engine is RoundEngine.SYNC:
        return state
    free = _free(state)
    busy = sum(state.is_expected(name) for name in state.assigned)
    room = max(0, rules.concurrency - busy) if rules.concurrency else len(free)
    # Several draws of one round: independent of each other, and the same after a restart.
    purpose = f"hand-out {len(state.cohort)}"
    return assign(state, sample(state, free, room, purpose=purpose), now)


def assign(state: RunState, names: tuple[str, ...], now: float) -> RunState:
    """Gives the open round's task to workers."""
    if not names:
        return state
    if state.version is None:
        raise AssertionError("a round begins from a version")
    task = Assignment(round=state.round, base_version=state.version, started=now)
    given = {name: state.workers[name] for name in names}
    return replace(
        state,
        cohort=tuple(sorted({*state.cohort, *names})),
        assigned={**state.assigned, **dict.fromkeys(names, task)},
        workers={
            **state.workers,
            **{n: replace(worker, num_tasks=worker.num_tasks + 1) for n, worker in given.items()},
        },
    )


def stand_in(state: RunState, lost: str, now: float) -> tuple[RunState, str]:
    """Gives a lost worker's place in the open round to another; "" where there is none to spare."""
    task = state.assigned.get(lost)
    if task is None or task.round != state.round or state.spec.rounds.engine != RoundEngine.SYNC:
        return state, ""
    spare = [name for name in _free(state) if name not in state.cohort]
    names = sample(state, spare, 1, purpose=f"stand-in {len(state.cohort)}")
    return assign(state, names, now), "".join(names)


def fill_up(state: RunState, now: float) -> tuple[RunState, dict[str, str]]:
    """Gives places in the open round back to who left and has returned, and free ones to others.

    Others are taken only as far as the round could not reach its quorum without them: it would
    otherwise wait for its deadline with workers at hand.

    Returns:
        The state; and of each worker that took another's place, whose.
    """
    if state.spec.rounds.engine is not RoundEngine.SYNC:
        return state, {}
    state = assign(state, tuple(_free(state, state.cohort)), now)
    at_work = {n for n, t in state.assigned.items() if t.round == state.round}
    coming = {*state.updates, *(n for n in at_work if state.is_expected(n))}
    missing = sorted({*state.cohort} - coming)
    places = min(len(missing), max(0, state.spec.rounds.quorum - len(coming)))
    if not places:
        # So nearly always, and then the crowd of those who wait is not gone through.
        return state, {}
    names = sample(state, _free(state), places, purpose=f"fill-up {len(state.cohort)}")
    return assign(state, names, now), dict(zip(names, missing, strict=False))


def drop_late(state: RunState) -> RunState:
    """Ends the tasks whose update can no longer count, as the open round closes."""
    rules = state.spec.rounds
    oldest = state.round + 1 - rules.max_staleness
    counts = rules.counts_late_updates and state.round < rules.num_rounds
    kept = {
        name: task
        for name, task in state.assigned.items()
        if counts and task.round >= oldest and state.workers[name].state is not WorkerState.LEFT
    }
    return replace(state, assigned=kept)


def is_complete(state: RunState) -> bool:
    """Whether the open round has all that it waits for."""
    rules, enough = state.spec.rounds, state.spec.rounds.closing_updates
    # Of updates without any example nothing can be made, and others may still come.
    has_examples = any(u.num_examples for u in state.updates.values())
    if enough and len(state.updates) >= enough and has_examples:
        return True
    if rules.engine is not RoundEngine.SYNC or len(state.updates) < rules.quorum:
        return False
    # A late update counts when it comes; nobody waits for it.
    return not any(
        task.round == state.round and state.is_expected(name)
        for name, task in state.assigned.items()
    )


def _free(state: RunState, among: Iterable[str] | None = None) -> list[str]:
    """Ready workers, all or of some, without a task or an update in the open round; sorted."""
    names = state.workers if among is None else among
    busy = state.assigned.keys() | state.updates.keys()
    return sorted(n for n in names if n not in busy and state.is_ready(n))
