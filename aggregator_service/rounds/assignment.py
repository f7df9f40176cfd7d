"""What a worker has to do now, and whether what it brings is what was asked for."""

from __future__ import annotations

from aggregator_service.rounds.manifests import (
    adapter_parts,
    check_coded_manifest,
    check_update_manifest,
    initial_manifest,
)
from aggregator_service.rounds.state import AdapterRecord, RunState
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.plan import RoundPlan, plan_for
from fedlora.runs.report import WorkerState
from fedlora.runs.seeds import derive_seed
from fedlora.runs.tasks import Directive, Task, TaskKind, UpdateHeader

__all__ = [
    "changed_parts",
    "check_evaluation",
    "check_update",
    "directive_for",
    "kind_for",
    "task_for",
    "workers_with_tasks",
]


def task_for(state: RunState, worker: str, now: float) -> Task:
    """The worker's task at this moment; the same one again until it is done."""
    kind = kind_for(state, worker)
    if kind is TaskKind.STOP:
        reason = state.reason or f"run {state.spec.name!r} is {state.phase.value}"
        return Task(task_id="", kind=kind, round=state.round, reason=reason)
    if kind is not TaskKind.WAIT:
        return _task(state, worker, kind, now)
    if state.workers[worker].state is not WorkerState.READY:
        return _wait("confirm the adapter first")
    return _wait(_waiting_for(state))


def workers_with_tasks(state: RunState) -> frozenset[str]:
    """All who have something to do now."""
    asked = {*state.assigned, *state.cohort, *state.evaluators, state.refiner}
    known = state.workers if state.phase.is_final else asked & state.workers.keys()
    return frozenset(name for name in known if kind_for(state, name) is not TaskKind.WAIT)


def kind_for(state: RunState, worker: str) -> TaskKind:
    """What kind of task a worker has now; WAIT for none."""
    phase = state.phase
    if phase.is_final:
        return TaskKind.STOP
    record = state.workers[worker]
    # A lost one that asks is back, and has the task it kept, before that it is back is stored.
    is_back = record.state is WorkerState.LOST and record.confirmed
    if record.state is not WorkerState.READY and not is_back:
        return TaskKind.WAIT
    if phase is RunPhase.INITIALIZING and worker in state.cohort and worker not in state.updates:
        return TaskKind.INITIALIZE
    if worker in state.assigned:
        return TaskKind.TRAIN
    if phase is RunPhase.REFINING and worker == state.refiner and state.refinement is None:
        return TaskKind.REFINE
    if (
        phase is RunPhase.EVALUATING
        and worker not in state.evaluations
        and worker in state.evaluators
    ):
        return TaskKind.EVALUATE
    return TaskKind.WAIT


def directive_for(state: RunState, worker: str, task_id: str, now: float) -> Directive:
    """Whether the task a worker has in hand is still its task."""
    if not task_id or task_for(state, worker, now).task_id == task_id:
        return Directive.CONTINUE
    return Directive.ABANDON_TASK


def changed_parts(state: RunState, held: AdapterRecord, wanted: AdapterRecord) -> frozenset[Part]:
    """The parts in which a version may differ from an earlier one that a worker holds.

    Everything, where the earlier one is none, or a worker may meanwhile have pruned its copy.
    """
    plans = state.plans
    if held.version >= wanted.version or any(plan.may_lower_rank for plan in plans):
        return frozenset(Part)
    rounds = [plan_for(plans, round) for round in range(held.round + 1, wanted.round + 1)]
    if wanted.base_version == held.version and not wanted.is_refinement:
        # One aggregation lies between, and no stage on the server's data.
        return frozenset(plan_for(plans, wanted.round).published)
    changed = {part for plan in rounds for part in (*plan.published, *plan.refined)}
    if held.round == wanted.round and held.round:
        changed |= {*plan_for(plans, held.round).refined}
    return frozenset(changed)


def check_update(state: RunState, worker: str, header: UpdateHeader, now: float) -> int:
    """The rank of an update, once it is known to be the one this worker was asked for.

    Raises:
        FedLoraError: WRONG_ROUND, WRONG_TASK, MANIFEST_MISMATCH or INVALID_ARGUMENT.
    """
    if header.run_id != state.run_id:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected run {state.run_id}, got {header.run_id[:100]!r}"
        )
    task = task_for(state, worker, now)
    if task.kind not in _SUBMITTED or header.round != task.round:
        raise FedLoraError(
            Reason.WRONG_ROUND,
            f"worker {worker!r} submits for round {header.round}, but the run is "
            f"{state.phase.value} in round {state.round} and expects "
            f"{'no update' if not task.task_id else f'round {task.round}'} of it",
            hint="Drop the update and ask for the next task",
        )
    if header.task_id != task.task_id:
        raise FedLoraError(
            Reason.WRONG_TASK,
            f"expected task {task.task_id!r}, got {header.task_id[:200]!r}",
        )
    if header.base_version != task.adapter_version:
        raise FedLoraError(
            Reason.WRONG_ROUND,
            f"the update starts from adapter version {header.base_version}, round {task.round} "
            f"from version {task.adapter_version}",
        )
    rank = state.workers[worker].rank
    if task.kind is TaskKind.INITIALIZE:
        if difference := initial_manifest(state, rank).difference(header.manifest):
            raise FedLoraError(
                Reason.MANIFEST_MISMATCH, f"the update is not the run's: {difference}"
            )
        return rank
    if missing := sorted({*task.plan.required_metrics} - header.metrics.keys()):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"an update of this run comes with the metrics {', '.join(task.plan.required_metrics)},"
            f" got none named {missing[0]!r}",
            hint=f"{state.spec.method.name} weighs updates by them",
        )
    if state.spec.codec is not None and task.kind is TaskKind.TRAIN:
        check_coded_manifest(state, state.spec.codec, task.plan, rank, header.manifest)
        return rank
    return check_update_manifest(state, task.plan, rank, header.manifest)


def check_evaluation(state: RunState, worker: str, task_id: str, now: float) -> bool:
    """Whether scores for a task count now; False if this worker's were counted before.

    Raises:
        FedLoraError: WRONG_TASK for any other task.
    """
    if task_for(state, worker, now).task_id == task_id and state.phase is RunPhase.EVALUATING:
        return True
    if worker in state.evaluations and task_id == _task_id(state, worker, TaskKind.EVALUATE):
        return False
    raise FedLoraError(
        Reason.WRONG_TASK,
        f"task {task_id[:200]!r} is not open; run {state.spec.name!r} is {state.phase.value} in "
        f"round {state.round}",
        hint="Ask for the next task",
    )


_SUBMITTED = (TaskKind.INITIALIZE, TaskKind.TRAIN, TaskKind.REFINE)
"""tasks that end with an update"""


def _task_id(state: RunState, worker: str, kind: TaskKind) -> str:
    return f"{state.run_id}/{_round(state, worker, kind)}/{kind.value}/{worker}"


def _round(state: RunState, worker: str, kind: TaskKind) -> int:
    """The round a task belongs to; of training in hand, the one it was given for."""
    if kind is TaskKind.INITIALIZE:
        return 0
    return state.assigned[worker].round if kind is TaskKind.TRAIN else state.round


def _task(state: RunState, worker: str, kind: TaskKind, now: float) -> Task:
    slot = state.workers[worker].slot
    shards = _test_shards(state) if kind is TaskKind.EVALUATE else 0
    round = _round(state, worker, kind)
    version = state.version or 0
    if kind is TaskKind.TRAIN:
        version = state.assigned[worker].base_version
    return Task(
        task_id=_task_id(state, worker, kind),
        kind=kind,
        round=round,
        adapter_version=version,
        # By data slot where there is one: a replacement repeats the work of the one it replaces.
        seed=derive_seed(state.spec.seed, round, kind.value, worker if slot is None else slot),
        shard_index=state.evaluators.index(worker) if shards else 0,
        shard_count=shards,
        remaining_seconds=max(0.0, state.deadline - now) if state.deadline is not None else 0.0,
        plan=_plan(state, kind, round),
        personal_version=_personal_version(state) if kind is TaskKind.EVALUATE else 0,
    )


def _personal_version(state: RunState) -> int:
    """The published version, or the one before its refinement where a plan asks for that."""
    published = state.adapter
    if published is None:
        raise AssertionError("a version is scored once there is one")
    refined = state.plan.personal_unrefined and published.is_refinement
    return published.version - 1 if refined else published.version


def _test_shards(state: RunState) -> int:
    """Into how many parts the test set is cut: one each, and those that nobody scores."""
    rules, workers = state.spec.rounds, len(state.evaluators)
    return workers if state.round == rules.num_rounds else round(workers / rules.test_share)


def _plan(state: RunState, kind: TaskKind, round: int) -> RoundPlan:
    if kind is TaskKind.INITIALIZE:
        return RoundPlan(trained=adapter_parts(state), published=adapter_parts(state))
    if kind is TaskKind.REFINE:
        refined = state.plan.refined
        return RoundPlan(trained=refined, published=refined, settings=state.plan.settings)
    return plan_for(state.plans, max(1, round))


def _wait(reason: str) -> Task:
    return Task(task_id="", kind=TaskKind.WAIT, reason=reason)


def _waiting_for(state: RunState) -> str:
    match state.phase:
        case RunPhase.CREATED:
            return f"run {state.spec.name!r} has not been started"
        case RunPhase.WAITING:
            return (
                f"{len(state.ready_workers)} of {state.spec.rounds.min_workers} workers are ready"
            )
        case RunPhase.REFINING:
            return f"round {state.round}: {state.refiner} trains on the server's data"
        case RunPhase.TRAINING:
            return f"{len(state.updates)} of {len(state.cohort)} updates of round {state.round}"
        case _:
            return f"round {state.round}: {state.phase.value}"
