"""A worker's main line against a real server: rounds, outages, fences, refusals, exit codes."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.fake_federation import (
    INITIALIZE,
    FakeFederation,
    Fault,
    evaluate_task,
    run_spec,
    train_task,
)
from support.tiny_trainer import LAYOUT, STEPS, TinyTrainer, adapter, adapter_file
from support.worker_harness import FakeTime, worker

from client_worker.patience import Patience
from client_worker.session import State
from fedlora.adapters.names import Part, parse_key
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import EvaluationScope, Registration, Task, TaskKind
from fedlora.tensors.manifest import DataType
from fedlora.tensors.safetensors_io import decode, encode

VERSIONS = {v: adapter_file(seed=10 + v) for v in range(3)}
MANIFEST = LAYOUT.manifest(4, DataType.F32)
PULL = "PullAdapter"
WAIT = Task(task_id="", kind=TaskKind.WAIT, reason="others train")


def updates(server: FakeFederation) -> list[tuple[str, bytes]]:
    return [(header.task_id, data) for header, data, _ in server.updates.values()]


# --- in good order -----------------------------------------------------------------------


def test_a_run_goes_from_initialization_over_training_and_evaluation_to_its_end(tmp_path: Path):
    plan = [
        INITIALIZE,
        train_task(1, version=0),
        evaluate_task(1, version=1),
        train_task(2, version=1),
        evaluate_task(2, version=2),
    ]
    with FakeFederation(plan, adapters=VERSIONS) as server, worker(server.address, tmp_path) as w:
        assert w.runner.run() is ExitCode.OK
    assert w.runner.state is State.GONE
    (trainer,) = w.trainers
    assert server.layouts == [LAYOUT]
    assert trainer.trained == [(1, 101), (2, 102)]
    assert [s for s, *_ in trainer.evaluated] == [
        EvaluationScope.LOCAL,
        EvaluationScope.GLOBAL,
        EvaluationScope.LOCAL,
        EvaluationScope.GLOBAL,
    ]
    assert trainer.evaluated[1][1:] == (1, 2)
    # The version just evaluated is in the model already: no second download of it.
    assert [r.adapter_version for r in server.requests("PullAdapter")] == [0, 1, 2]
    first, second, third = server.updates.values()
    assert (first[0].round, first[0].num_examples) == (0, 0)
    assert first[1] == adapter_file(seed=0)[0]
    assert (second[0].round, second[0].base_version, second[0].num_examples) == (1, 0, 64)
    noise = adapter(seed=101)
    base = decode(VERSIONS[0][0], MANIFEST)
    trained = encode({name: base[name] + noise[name] for name in noise})
    assert second[2].digest == trained.digest
    assert second[0].evaluations[0].scope is EvaluationScope.LOCAL
    assert (third[0].round, third[0].base_version) == (2, 1)
    assert [s.task_id for s in server.scores] == [plan[2].task_id, plan[4].task_id]
    assert server.requests("Leave")[0].reason == "over"


def test_metrics_that_are_no_numbers_do_not_cost_the_update(tmp_path: Path):
    with (
        FakeFederation([train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() == 0
    ((header, _, _),) = server.updates.values()
    assert header.metrics == {"train_loss": 0.5, "train_seconds": 0.1}


def test_a_run_without_evaluation_is_spared_the_local_one_too(tmp_path: Path):
    run = run_spec(evaluate=False)
    with (
        FakeFederation([train_task()], run=run, adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() == 0
    assert not w.trainers[0].evaluated


def test_the_trainer_is_made_for_the_rank_and_slot_that_the_server_gives(tmp_path: Path):
    with FakeFederation(partition=PartitionSpec(num_slots=4)) as server:
        server.rank = 2
        with worker(server.address, tmp_path, max_rank=2) as w:
            assert w.runner.run() == 0
    registration = w.trainers[0].registration
    assert (registration.rank, registration.data_slot) == (2, server.slot)
    assert server.requests("Register")[0].capabilities.max_rank == 2


def test_heartbeats_begin_before_the_model_is_loaded_and_carry_the_task(tmp_path: Path):
    task_id = train_task().task_id
    confirmed_by_then = []

    def until_the_task_is_named(step: int) -> None:
        server.wait_until(lambda: task_id in {r.task_id for r in server.requests("KeepAlive")})

    def create(registration: Registration) -> TinyTrainer:
        server.wait_until(lambda: server.count("KeepAlive") >= 2)
        confirmed_by_then.append(server.count("ConfirmAdapter"))
        return TinyTrainer(registration, on_step=until_the_task_is_named)

    with (
        FakeFederation([train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path, create=create) as w,
    ):
        assert w.runner.run() == 0
    assert confirmed_by_then == [0]
    assert {r.task_id for r in server.requests("KeepAlive")} == {"", task_id}


def test_progress_reaches_the_server_and_never_stops_the_training(tmp_path: Path):
    def until_reported(step: int) -> None:
        if step == 2:
            server.wait_until(lambda: server.count("ReportMetrics") >= 1)

    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        server.fail("ReportMetrics", *[Fault()] * 50)
        with worker(server.address, tmp_path, on_step=until_reported) as w:
            assert w.runner.run() == 0
    report = server.requests("ReportMetrics")[0].progress
    assert (report.task_id, report.total_steps) == (train_task().task_id, STEPS)
    assert dict(report.metrics) == {"loss": 1.0}


def test_a_worker_told_to_wait_asks_again(tmp_path: Path):
    with (
        FakeFederation([WAIT, train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() == 0
    assert len(server.updates) == 1


def test_a_worker_with_less_room_than_the_run_asks_for_says_so_once_it_knows_the_run(
    tmp_path: Path,
):
    asked: list[RunSpec] = []

    def two(run: RunSpec) -> int:
        asked.append(run)
        return 2

    small = {0: adapter_file(seed=1, rank=2)}
    with (
        FakeFederation([train_task()], adapters=small) as server,
        worker(server.address, tmp_path, rank_limit=two) as w,
    ):
        assert w.runner.run() == 0
    assert asked == [server.run]
    first, second = server.requests("Register")
    assert (first.capabilities.max_rank, second.capabilities.max_rank) == (0, 2)
    assert first.instance_id == second.instance_id
    # The model is loaded once, for what fits.
    assert [trainer.rank for trainer in w.trainers] == [2]


def test_a_worker_with_room_for_the_runs_rank_registers_once(tmp_path: Path):
    with (
        FakeFederation([train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path, rank_limit=lambda _: 64) as w,
    ):
        assert w.runner.run() == 0
    assert server.count("Register") == 1
    assert w.trainers[0].rank == 4


# --- tasks that no longer count ----------------------------------------------------------


def test_a_task_that_no_longer_counts_is_dropped_in_mid_training(tmp_path: Path):
    def overtaken(step: int) -> None:
        if len(w.trainers[0].loads) == 1:
            server.abandon.add(train_task(1).task_id)
            seen = server.count("KeepAlive")
            server.wait_until(lambda: server.count("KeepAlive") >= seen + 3)
            if server.plan[0].round == 1:
                server.drop_task()

    plan = [train_task(1, version=0), train_task(2, version=1)]
    with (
        FakeFederation(plan, adapters=VERSIONS) as server,
        worker(server.address, tmp_path, on_step=overtaken) as w,
    ):
        assert w.runner.run() == 0
    assert w.trainers[0].trained == [(2, 102)]
    assert [task for task, _ in updates(server)] == [train_task(2).task_id]


@pytest.mark.parametrize("reason", [Reason.WRONG_ROUND, Reason.WRONG_TASK, Reason.WRONG_PHASE])
def test_an_update_that_comes_too_late_is_dropped_and_the_worker_goes_on(tmp_path: Path, reason):
    plan = [train_task(1, version=0), train_task(2, version=1)]
    with FakeFederation(plan, adapters=VERSIONS) as server:

        def close_round_1(step: int) -> None:
            if server.plan[0].round == 1 and step == STEPS:
                server.fail("PushUpdate", Fault(FedLoraError(reason, "closed")))
                server.drop_task()

        with worker(server.address, tmp_path, on_step=close_round_1) as w:
            assert w.runner.run() == 0
    assert [r for r, _ in w.trainers[0].trained] == [1, 2]
    assert [task for task, _ in updates(server)] == [train_task(2).task_id]


def test_scores_that_come_too_late_are_dropped(tmp_path: Path):
    plan = [evaluate_task(1, version=1), train_task(2, version=1)]
    with FakeFederation(plan, adapters=VERSIONS) as server:
        late = FedLoraError(Reason.WRONG_TASK, "not open")
        server.fail("ReportEvaluation", Fault(late))
        with worker(server.address, tmp_path) as w:
            assert w.runner.run() == 0
    # The same task was handed out again, and its scores were taken then.
    assert len(server.scores) == 1
    assert server.count("PullAdapter") == 1


# --- a server that is away ---------------------------------------------------------------


def test_training_outlives_the_server_and_the_update_is_sent_when_it_is_back(tmp_path: Path):
    away = threading.Event()

    def go_away(step: int) -> None:
        if step == 1:
            server.stop()
            away.set()

    def pause(seconds: float) -> None:
        if away.is_set():
            away.clear()
            server.start()
        threading.Event().wait(min(seconds, 0.05))

    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        patient = Patience(limit_seconds=0, sleep=pause)
        with worker(server.address, tmp_path, on_step=go_away, patience=patient) as w:
            assert w.runner.run() == 0
    assert len(server.updates) == 1
    assert server.count("Register") == 1


def test_a_server_that_never_answers_ends_the_worker_with_4_after_the_time_given(tmp_path: Path):
    with FakeFederation() as server:
        address = server.address
    time = FakeTime()
    patient = Patience(limit_seconds=0.5, clock=time.clock, sleep=time.sleep)
    with worker(address, tmp_path, patience=patient) as w:
        assert w.runner.run() is ExitCode.UNREACHABLE
    assert sum(time.pauses) == pytest.approx(0.5)
    assert w.runner.state is State.GONE


def test_a_server_lost_in_mid_run_ends_the_worker_with_4(tmp_path: Path):
    time = FakeTime()
    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        patient = Patience(limit_seconds=0.5, clock=time.clock, sleep=time.sleep)

        def vanish(step: int) -> None:
            server.stop()

        with worker(server.address, tmp_path, on_step=vanish, patience=patient) as w:
            assert w.runner.run() is ExitCode.UNREACHABLE
    assert server.count("Leave") == 0
    assert w.trainers[0].trained == [(1, 101)]


def test_a_data_slot_that_is_still_leased_is_waited_for(tmp_path: Path):
    taken = Fault(FedLoraError(Reason.NO_FREE_SLOT, "all are leased"))
    with FakeFederation() as server:
        server.fail("Register", taken, taken)
        with worker(server.address, tmp_path) as w:
            assert w.runner.run() == 0
    assert server.count("Register") == 3


@pytest.mark.parametrize("offset", [1, 300, 900, 1200])
def test_an_upload_that_is_cut_resumes_and_one_that_lost_its_answer_counts_once(
    tmp_path: Path, offset: int
):
    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        server.fail("PushUpdate", Fault(after_bytes=offset), Fault(after_effect=True))
        with worker(server.address, tmp_path) as w:
            assert w.runner.run() == 0
    ((header, data, _),) = server.updates.values()
    sent = sum(length for stream in server.streams for _, length in stream.chunks)
    assert sent == len(data) == header.total_bytes
    assert len(server.streams) == 2
    assert w.trainers[0].trained == [(1, 101)]


# --- sessions ----------------------------------------------------------------------------


def test_a_forgotten_worker_registers_again_and_keeps_the_task_it_holds(tmp_path: Path):
    def forget(step: int) -> None:
        if step == 1:
            server.forget_sessions()
            server.wait_until(lambda: server.count("ConfirmAdapter") == 2)

    with (
        FakeFederation([train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path, on_step=forget) as w,
    ):
        assert w.runner.run() == 0
    first, second = server.requests("Register")
    assert first.instance_id == second.instance_id
    assert len(w.trainers) == 1
    assert w.trainers[0].trained == [(1, 101)]
    assert len(server.updates) == 1


def test_a_worker_registered_into_another_run_loads_again(tmp_path: Path):
    def exchange(step: int) -> None:
        if step == 1 and server.run_id == "run-1":
            server.run, server.run_id = run_spec("other", r=2), "run-2"
            server.rank = 2
            server.plan.clear()
            server.plan.append(train_task(run_id="run-2"))
            server.abandon.add(train_task().task_id)
            server.adapters = {0: adapter_file(seed=1, rank=2)}
            server.forget_sessions()
            server.wait_until(lambda: server.count("Register") == 2)
            seen = server.count("KeepAlive")
            server.wait_until(lambda: server.count("KeepAlive") >= seen + 3)

    with (
        FakeFederation([train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path, on_step=exchange) as w,
    ):
        assert w.runner.run() == 0
    assert [t.registration.run.name for t in w.trainers] == ["test", "other"]
    ((header, _, _),) = server.updates.values()
    assert (header.run_id, header.task_id) == ("run-2", "run-2/1/train/w")


def test_what_was_loaded_for_one_run_is_not_declared_to_another(tmp_path: Path):
    trainers: list[TinyTrainer] = []

    def create(registration: Registration) -> TinyTrainer:
        if not trainers:
            server.run, server.run_id = run_spec("other"), "run-2"
            server.forget_sessions()
            # By a heartbeat, while the model of the first run is being loaded.
            server.wait_until(lambda: server.count("Register") == 2)
        assert not server.layouts
        trainers.append(TinyTrainer(registration))
        return trainers[-1]

    with (
        FakeFederation([train_task(run_id="run-2")], adapters=VERSIONS) as server,
        worker(server.address, tmp_path, create=create) as w,
    ):
        assert w.runner.run() == 0
    assert [t.registration.run.name for t in trainers] == ["test", "other"]
    assert len(server.layouts) == 1


def test_a_worker_asked_to_initialize_after_training_attaches_a_fresh_adapter(tmp_path: Path):
    plan = [train_task(), INITIALIZE]
    with FakeFederation(plan, adapters=VERSIONS) as server, worker(server.address, tmp_path) as w:
        assert w.runner.run() == 0
    assert len(w.trainers) == 2
    assert updates(server)[1] == (INITIALIZE.task_id, adapter_file(seed=0)[0])


def test_a_fenced_process_ends_with_5_and_touches_nothing(tmp_path: Path):
    with FakeFederation([train_task()], adapters=VERSIONS) as server:

        def fence(step: int) -> None:
            server.fence()
            gone = next(t for t in threading.enumerate() if t.name == "heartbeats")
            gone.join(10)

        with worker(server.address, tmp_path, on_step=fence) as w:
            assert w.runner.run() is ExitCode.FENCED
    assert not w.trainers[0].trained
    assert server.count("PushUpdate") == server.count("Leave") == 0
    assert server.count("Register") == 1


def test_a_process_fenced_while_it_waits_ends_with_5(tmp_path: Path):
    with FakeFederation(keep_waiting=True) as server, worker(server.address, tmp_path) as w:
        wait = w.run_in_thread()
        server.wait_until(lambda: server.count("AwaitTask") == 1)
        server.fence()
        assert wait() == ExitCode.FENCED


# --- errors and exit codes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("Register", Reason.NO_OPEN_RUN),
        ("Register", Reason.NOT_FOUND),
        ("Register", Reason.UNSUPPORTED_METHOD),
        ("ConfirmAdapter", Reason.BASE_MISMATCH),
        ("ConfirmAdapter", Reason.LAYOUT_MISMATCH),
        ("PushUpdate", Reason.INVALID_PAYLOAD),
        ("PushUpdate", Reason.NOT_FINITE),
        ("PushUpdate", Reason.INVALID_ARGUMENT),
        ("PullAdapter", Reason.STATE_CORRUPT),
    ],
)
def test_what_the_server_refuses_for_good_ends_the_worker_with_3(
    tmp_path: Path, method: str, reason: Reason
):
    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        server.fail(method, Fault(FedLoraError(reason, "no, because")))
        with worker(server.address, tmp_path) as w:
            assert w.runner.run() is ExitCode.REFUSED
    assert server.count(method) == 1
    assert server.count("Leave") == (0 if method == "Register" else 1)
    if method != "Register":
        said = "a call to the server did not succeed"
        assert server.requests("Leave")[0].reason == f"{reason}: {said}"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.INVALID_DATA, ExitCode.USAGE),
        (Reason.INVALID_MODEL, ExitCode.USAGE),
        (Reason.MISSING_EXTRA, ExitCode.USAGE),
        (Reason.DEVICE_UNAVAILABLE, ExitCode.DEVICE),
    ],
)
def test_what_is_wrong_on_this_machine_has_its_own_codes_and_stays_there(
    tmp_path: Path, reason, code
):
    def create(registration):
        raise FedLoraError(reason, "/home/jane/rows.jsonl, line 7: no Jane", hint="Ask Jane")

    with FakeFederation() as server, worker(server.address, tmp_path, create=create) as w:
        assert w.runner.run() is code
    said = "the worker's own log says what is wrong"
    assert server.requests("Leave")[0].reason == f"{reason}: {said}"


def test_a_mistake_of_ours_is_raised_after_leaving_without_its_detail(tmp_path: Path):
    def create(registration):
        raise RuntimeError("secret detail")

    with (
        FakeFederation() as server,
        worker(server.address, tmp_path, create=create) as w,
        pytest.raises(RuntimeError),
    ):
        w.runner.run()
    assert server.requests("Leave")[0].reason == "internal error: RuntimeError"


def test_an_adapter_that_does_not_fit_is_not_loaded(tmp_path: Path):
    with (
        FakeFederation([train_task()], adapters={0: adapter_file(seed=1, rank=3)}) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() is ExitCode.USAGE
    assert not w.trainers[0].loads


def test_no_thread_outlives_the_worker(tmp_path: Path):
    with (
        FakeFederation([train_task()], adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        w.runner.run()
    assert not {t.name for t in threading.enumerate()} & {"heartbeats", "progress"}


# --- stopping ----------------------------------------------------------------------------


def test_a_stop_in_mid_training_drops_the_work_and_leaves_with_0(tmp_path: Path):
    with FakeFederation([train_task()], adapters=VERSIONS) as server:

        def ask(step: int) -> None:
            if step == 2:
                w.stop.request()

        with worker(server.address, tmp_path, on_step=ask, endless=True) as w:
            assert w.runner.run() is ExitCode.OK
    assert not server.updates
    assert server.requests("Leave")[0].reason == "stopped by SIGTERM"


# --- plans -------------------------------------------------------------------------------

PRIVATE_B = RoundPlan(trained=(Part.A,), private=(Part.B,), published=(Part.A,))


def planned(plan: RoundPlan, *rounds: int) -> list[Task]:
    return [replace(train_task(r, version=r - 1), plan=plan) for r in rounds]


def sent(server: FakeFederation) -> list[dict[str, torch.Tensor]]:
    return [decode(data, header.manifest) for header, data, _ in server.updates.values()]


def part_of(tensors: dict[str, torch.Tensor], part: Part) -> torch.Tensor:
    (tensor,) = (t for n, t in tensors.items() if parse_key(n).part is part)
    return tensor


def test_an_update_holds_what_the_plan_trains_and_the_rest_stays_with_the_worker(tmp_path: Path):
    plan = [*planned(RoundPlan(trained=(Part.B,)), 1), *planned(RoundPlan(trained=(Part.A,)), 2)]
    with FakeFederation(plan, adapters=VERSIONS) as server, worker(server.address, tmp_path) as w:
        assert w.runner.run() == 0
    first, second = sent(server)
    assert [parse_key(n).part for n in (*first, *second)] == [Part.B, Part.A]
    given = decode(VERSIONS[1][0], MANIFEST)
    expected = part_of(given, Part.A) + part_of(adapter(seed=102), Part.A)
    assert torch.equal(part_of(second, Part.A), expected)


def test_a_private_part_goes_on_from_round_to_round_and_into_evaluations(tmp_path: Path):
    evaluation = replace(evaluate_task(1, version=1), plan=PRIVATE_B)
    plan = [*planned(PRIVATE_B, 1), evaluation, *planned(PRIVATE_B, 2)]
    seen = []

    class Scored(TinyTrainer):
        def evaluate(self, scope, **shard):
            seen.append((scope, part_of(self.adapter(), Part.B)))
            return super().evaluate(scope, **shard)

    with (
        FakeFederation(plan, adapters=VERSIONS) as server,
        worker(server.address, tmp_path, create=Scored) as w,
    ):
        assert w.runner.run() == 0
    after_1 = part_of(adapter(seed=10), Part.B) + part_of(adapter(seed=101), Part.B)
    after_2 = after_1 + part_of(adapter(seed=102), Part.B)
    assert [scope for scope, _ in seen] == [
        EvaluationScope.LOCAL,
        EvaluationScope.GLOBAL,
        EvaluationScope.LOCAL,
    ]
    for (_, got), expected in zip(seen, (after_1, after_1, after_2), strict=True):
        assert torch.equal(got, expected)
    assert all(parse_key(n).part is Part.A for tensors in sent(server) for n in tensors)


def test_a_private_part_is_durable_before_its_update_is_sent(tmp_path: Path):
    cache = tmp_path / "cache"
    kept_by_then = []

    class Looking(FakeFederation):
        def GetUploadStatus(self, request, context):
            kept_by_then.append(len(list(cache.rglob("*.private"))))
            return super().GetUploadStatus(request, context)

    with (
        Looking(planned(PRIVATE_B, 1), adapters=VERSIONS) as server,
        worker(server.address, tmp_path, cache_dir=cache) as w,
    ):
        assert w.runner.run() == 0
    assert kept_by_then == [1]


def test_a_task_trained_again_after_a_restart_gives_the_same_bytes(tmp_path: Path):
    cache = tmp_path / "cache"
    with FakeFederation(planned(PRIVATE_B, 1, 2), adapters=VERSIONS) as server:
        with worker(server.address, tmp_path, cache_dir=cache) as undisturbed:
            assert undisturbed.runner.run() == 0
        (undisturbed_part,) = {p.name for p in cache.rglob("00000002*.private")}
    cache = tmp_path / "other"
    with FakeFederation(planned(PRIVATE_B, 1, 2), adapters=VERSIONS) as server:
        broken = Fault(FedLoraError(Reason.STATE_CORRUPT, "broken"))

        def break_in_round_2(step: int) -> None:
            if server.plan[0].round == 2 and step == STEPS:
                server.fail("GetUploadStatus", broken)

        with worker(server.address, tmp_path, cache_dir=cache, on_step=break_in_round_2) as w:
            assert w.runner.run() is ExitCode.REFUSED
        # The private part is there, the update that went with it is not.
        shutil.rmtree(cache / "workers" / "w" / "outbox")
        with worker(server.address, tmp_path, cache_dir=cache) as again:
            assert again.runner.run() == 0
    assert again.trainers[0].trained == [(2, 102)]
    assert undisturbed_part.split(".")[1] in {
        p.name.split(".")[1] for p in cache.rglob("*.private")
    }


def test_a_worker_names_the_version_it_holds_and_lays_over_it_what_comes(tmp_path: Path):
    plan = [train_task(1, version=0), train_task(2, version=2)]
    with FakeFederation(plan, adapters=VERSIONS) as server:
        server.changes[0, 2] = adapter_file(seed=12, parts=(Part.B,))
        with worker(server.address, tmp_path) as w:
            assert w.runner.run() == 0
    asked = [r.held_version if r.HasField("held_version") else None for r in server.requests(PULL)]
    assert asked == [None, 0]
    noise, held = adapter(seed=102), decode(VERSIONS[0][0], MANIFEST)
    _, second = sent(server)
    # What it had trained in between has left no trace.
    assert torch.equal(part_of(second, Part.A), part_of(held, Part.A) + part_of(noise, Part.A))
    new = adapter(seed=12)
    assert torch.equal(part_of(second, Part.B), part_of(new, Part.B) + part_of(noise, Part.B))


def test_a_version_that_is_held_is_not_fetched_again_after_training(tmp_path: Path):
    plan = [train_task(1, version=0), train_task(2, version=0)]
    with FakeFederation(plan, adapters=VERSIONS) as server, worker(server.address, tmp_path) as w:
        assert w.runner.run() == 0
    assert server.count(PULL) == 1
    assert len(w.trainers[0].loads) == 2


def test_what_another_session_was_given_is_held_no_longer(tmp_path: Path):
    plan = [train_task(1, version=0), train_task(2, version=1)]
    with FakeFederation(plan, adapters=VERSIONS) as server:

        def forget(step: int) -> None:
            if server.plan[0].round == 1 and step == STEPS:
                server.forget_sessions()

        with worker(server.address, tmp_path, on_step=forget) as w:
            assert w.runner.run() == 0
    assert [r.HasField("held_version") for r in server.requests(PULL)] == [False, False]


# --- restarts ----------------------------------------------------------------------------


def test_a_restarted_worker_submits_what_it_had_trained(tmp_path: Path):
    cache = tmp_path / "cache"
    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        server.fail("GetUploadStatus", Fault(FedLoraError(Reason.STATE_CORRUPT, "broken")))
        with worker(server.address, tmp_path, cache_dir=cache) as first:
            assert first.runner.run() is ExitCode.REFUSED
        with worker(server.address, tmp_path, cache_dir=cache) as second:
            assert second.runner.run() == 0
        assert first.trainers[0].trained == [(1, 101)]
        assert second.trainers[0].trained == []
        ((header, _, _),) = server.updates.values()
        assert (header.num_examples, header.metrics["train_loss"]) == (64, 0.5)
        assert len(header.evaluations) == 1
    assert not (cache / "workers" / "w" / "outbox").exists()


def test_a_restarted_worker_trains_again_for_another_task(tmp_path: Path):
    cache = tmp_path / "cache"
    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        server.fail("GetUploadStatus", Fault(FedLoraError(Reason.STATE_CORRUPT, "broken")))
        with worker(server.address, tmp_path, cache_dir=cache) as first:
            assert first.runner.run() is ExitCode.REFUSED
        server.plan[0] = replace(train_task(2), adapter_version=1)
        with worker(server.address, tmp_path, cache_dir=cache) as second:
            assert second.runner.run() == 0
    assert second.trainers[0].trained == [(2, 102)]


def test_workers_that_share_a_cache_folder_do_not_share_updates(tmp_path: Path):
    cache = tmp_path / "cache"
    with FakeFederation([train_task()], adapters=VERSIONS) as server:
        server.fail("GetUploadStatus", Fault(FedLoraError(Reason.STATE_CORRUPT, "broken")))
        with worker(server.address, tmp_path, cache_dir=cache) as first:
            assert first.runner.run() is ExitCode.REFUSED
        with worker(server.address, tmp_path, cache_dir=cache, name="other") as second:
            assert second.runner.run() == 0
    assert second.trainers[0].trained == [(1, 101)]
