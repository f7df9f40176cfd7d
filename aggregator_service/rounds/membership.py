"""Who takes part: sessions, readiness, ranks, leased data slots.

Pure functions on RunState; nothing here knows tokens, sockets or clocks.
"""

from __future__ import annotations

import re
from dataclasses import replace

from aggregator_service.rounds.events import AdapterConfirmed, Fact, WorkerRegistered
from aggregator_service.rounds.state import RunState, WorkerRecord
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, WorkerState
from fedlora.runs.tasks import Role

__all__ = [
    "confirm_adapter",
    "register_worker",
    "session_epoch",
    "set_worker_state",
]


def register_worker(state: RunState, event: WorkerRegistered) -> tuple[RunState, Fact]:
    """Opens a session for a worker, fencing the one it had.

    The worker keeps its slot, its place in the round and what it has submitted.

    Raises:
        FedLoraError: NO_FREE_SLOT if all data partitions are held by workers that are alive;
            UNSUPPORTED_METHOD if its rank limit is below the run's rank and the method needs one
            rank for all.
    """
    spec = state.spec
    limit = event.capabilities.max_rank
    rank = min(spec.adapter.r, limit) if limit else spec.adapter.r
    if rank != spec.adapter.r and not event.takes_mixed_ranks:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"worker {event.name!r} can train rank {limit} at most, and {spec.method.name} needs "
            f"rank {spec.adapter.r} of every worker",
            hint="Raise the worker's max_rank, or run a method that takes mixed ranks",
        )
    dtypes = event.capabilities.wire_dtypes
    if dtypes and spec.wire_dtype not in dtypes:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"worker {event.name!r} can exchange {', '.join(dtypes)}, the run exchanges "
            f"{spec.wire_dtype}",
        )
    _check_codec(state, event)
    _check_plugins(state, event)
    _check_features(state, event)
    old = state.workers.get(event.name)
    slot = None
    if event.capabilities.role is Role.PARTY:
        state, slot = _lease_slot(state, event)
    if old is not None and any(plan.may_lower_rank for plan in state.plans):
        # What it has pruned in an earlier session stays pruned.
        rank = min(rank, old.rank)
    worker = WorkerRecord(
        name=event.name,
        state=WorkerState.JOINING,
        epoch=session_epoch(old, event.instance_id),
        session_hash=event.session_hash,
        instance_id=event.instance_id,
        capabilities=event.capabilities,
        rank=rank,
        slot=slot,
        num_updates=old.num_updates if old else 0,
        num_tasks=old.num_tasks if old else 0,
        num_examples=old.num_examples if old else 0,
        loss=old.loss if old else None,
    )
    fact = Fact(
        type=EventType.WORKER_REGISTERED,
        round=state.round,
        worker=event.name,
        detail={
            "device": event.capabilities.device_name,
            "rank": rank,
            "replaced_session": old is not None and old.instance_id != event.instance_id,
            **({"data_slot": slot} if slot is not None else {}),
        },
    )
    return state.with_worker(worker), fact


def _check_codec(state: RunState, event: WorkerRegistered) -> None:
    codec = state.spec.codec
    if codec is None or codec.name in event.capabilities.codecs:
        return
    able = ", ".join(sorted(event.capabilities.codecs)) or "no codec"
    raise FedLoraError(
        Reason.UNSUPPORTED_METHOD,
        f"updates of run {state.spec.name!r} are written in {codec.name.value}, and worker "
        f"{event.name!r} offers {able}",
        hint="Use a worker of the server's version, or leave the section [codec] out",
    )


def _check_plugins(state: RunState, event: WorkerRegistered) -> None:
    wanted = {plugin.name for plugin in state.spec.plugins}
    if missing := sorted(wanted - {*event.capabilities.plugins}):
        able = ", ".join(sorted(event.capabilities.plugins)) or "none"
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"workers of run {state.spec.name!r} train with the plug-in {', '.join(missing)}, and "
            f"worker {event.name!r} knows {able}",
            hint="Install the plug-in's package there too (docs/extending.md), or leave the "
            "section out",
        )


def _check_features(state: RunState, event: WorkerRegistered) -> None:
    wanted = {feature for plan in state.plans for feature in plan.features}
    if missing := sorted(wanted - {*event.capabilities.features}):
        able = ", ".join(sorted(event.capabilities.features)) or "none of such features"
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"the method {state.spec.method.name} asks its workers for {', '.join(missing)}, and "
            f"worker {event.name!r} offers {able}",
            hint="Use another worker, or a method that asks for less: see fedlora methods",
        )


def session_epoch(old: WorkerRecord | None, instance_id: str) -> int:
    """Epoch of a new session: a new process fences the old one, a retry of the same does not.

    A retry that overtakes its original leaves a process with a token that is unknown rather than
    fenced, so it registers once more instead of ending.
    """
    if old is None:
        return 1
    return old.epoch if old.instance_id == instance_id else old.epoch + 1


def confirm_adapter(state: RunState, event: AdapterConfirmed) -> tuple[RunState, tuple[Fact, ...]]:
    """Checks a worker's adapter against the run's; the first one fixes it.

    Raises:
        FedLoraError: BASE_MISMATCH or LAYOUT_MISMATCH, naming the first difference.
    """
    worker = state.workers[event.worker]
    pinned = state.spec.adapter.base_model.fingerprint
    expected = state.layout.base_fingerprint if state.layout else pinned
    if not event.layout.base_fingerprint:
        raise FedLoraError(Reason.INVALID_ARGUMENT, "layout.base_fingerprint is empty")
    if expected and event.layout.base_fingerprint != expected:
        raise FedLoraError(
            Reason.BASE_MISMATCH,
            f"worker {event.worker!r} holds base model {event.layout.base_fingerprint}, the run is "
            f"on {expected} ({state.spec.adapter.base_model.model_id})",
            hint="Load the same revision of the same weights",
        )
    if state.layout is not None and (difference := state.layout.difference(event.layout)):
        raise FedLoraError(
            Reason.LAYOUT_MISMATCH,
            f"the adapter of worker {event.worker!r} is not the run's: {difference}",
            hint="Use the same base model and the same versions of transformers and peft",
        )
    facts: tuple[Fact, ...] = ()
    if worker.state is not WorkerState.READY:
        detail = {} if state.layout else {"fixed_layout": True}
        facts = (
            Fact(
                type=EventType.WORKER_READY,
                round=state.round,
                worker=event.worker,
                detail={**detail, "num_modules": len(event.layout.modules)},
            ),
        )
    state = replace(state, layout=state.layout or event.layout)
    return state.with_worker(replace(worker, state=WorkerState.READY, confirmed=True)), facts


def set_worker_state(state: RunState, name: str, to: WorkerState) -> RunState:
    """The state with one worker ready, lost or gone."""
    return state.with_worker(replace(state.workers[name], state=to))


def _without_slot(state: RunState, worker: WorkerRecord) -> RunState:
    """The state in which a worker that is gone has lost its data to another.

    It may come back in the same session, with that data in memory: it then has to register again,
    for another slot, and what it has trained counts no more.
    """
    state = state.with_worker(replace(worker, slot=None, confirmed=False))
    in_hand = {name: task for name, task in state.assigned.items() if name != worker.name}
    return replace(state, assigned=in_hand)


def _lease_slot(state: RunState, event: WorkerRegistered) -> tuple[RunState, int | None]:
    name, preferred = event.name, event.capabilities.preferred_data_slot
    partition = state.spec.partition
    if partition is None:
        return state, None
    own = state.workers[name].slot if name in state.workers else None
    if own is not None:
        return state, own
    holders = {w.slot: w for w in state.workers.values() if w.slot is not None}
    free = [s for s in range(partition.num_slots) if s not in holders]
    # worker-3 prefers slot 3, so that equal set-ups split the data equally whoever comes first.
    if preferred is None and (trailing := re.search(r"(\d+)$", name)):
        preferred = int(trailing[1])
    if preferred in free:
        return state, preferred
    if free:
        return state, free[0]
    for gone in (WorkerState.LEFT, WorkerState.LOST):
        for slot, holder in sorted(holders.items(), key=lambda item: item[0] or 0):
            if holder.state is gone:
                return _without_slot(state, holder), slot
    raise FedLoraError(
        Reason.NO_FREE_SLOT,
        f"all {partition.num_slots} data partitions of run {state.spec.name!r} are leased",
        hint="Raise data.partition.num_slots, or stop a worker",
    )
