"""Late updates, buffers and lost workers through the stubs, certificate and restart included."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from support.federation import ScriptedWorker, Served, random_adapter, reason_of, serving
from support.runs import run_spec
from support.waiting import until

from aggregator_service import engine
from aggregator_service.failpoints import Failpoint
from fedlora.adapters.names import Factor, lora_key
from fedlora.proto.v1 import admin_pb2, federation_pb2, run_pb2
from fedlora.runs.rounds import LateUpdates, RoundEngine
from fedlora.runs.spec import RunSpec

TRAIN = federation_pb2.TASK_KIND_TRAIN


def buffered(**rules: object) -> RunSpec:
    rules = {
        "engine": RoundEngine.BUFFERED,
        "buffer_size": 2,
        "quorum": 1,
        "num_rounds": 3,
        "evaluate": False,
        **rules,
    }
    return run_spec(method=str(rules.pop("method", "optimal")), num_workers=3, **rules)


async def joined(served: Served, *names: str) -> list[ScriptedWorker]:
    workers = [await served.worker(n) for n in names]
    first = workers[0]
    task = await first.task()
    assert task.kind == federation_pb2.TASK_KIND_INITIALIZE
    await first.push(task, random_adapter(4, seed=0, scale=0.1), num_examples=0)
    return workers


def product(tensors, module: str) -> torch.Tensor:
    a, b = (tensors[lora_key(module, f)].double() for f in (Factor.LORA_A, Factor.LORA_B))
    return 2.0 * b @ a  # lora_alpha / r = 8 / 4


async def report_of(served: Served, round: int):
    """A round's report, once it is certified."""
    watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
    async for message in watch:
        event = message.event
        if event.type == admin_pb2.EVENT_TYPE_CERTIFICATE_READY and event.round == round:
            break
    watch.cancel()
    request = admin_pb2.GetRoundReportRequest(run="test", round=round)
    return (await served.admin.GetRoundReport(request, timeout=30)).report


async def test_a_buffered_federation_is_certified_against_what_fedbuff_asks_for(tmp_path: Path):
    async with serving(tmp_path, buffered()) as served:
        a, b, slow = await joined(served, "a", "b", "slow")
        held = await slow.task()
        assert (held.kind, held.adapter_version) == (TRAIN, 0)
        for i, worker in enumerate((a, b)):
            await worker.push(await worker.task(), random_adapter(4, seed=1 + i))
        late = random_adapter(4, seed=9)
        fresh_task = await a.task()
        assert fresh_task.adapter_version == 1, "a fast worker goes on at once"
        versions = [await a.pull_tensors(v) for v in (0, 1)]
        await slow.push(held, late, num_examples=30)
        fresh = random_adapter(4, seed=5)
        await a.push(fresh_task, fresh, num_examples=10)
        report = await report_of(served, 2)
        published = await b.pull_tensors(2)
    share = 2**-0.5
    assert [(u.worker, u.staleness) for u in report.updates] == [("a", 0), ("slow", 1)]
    assert [u.weight for u in report.updates] == pytest.approx([0.25, 0.75 * share])
    for entry in report.certificate.modules:
        v0, v1 = (product(v, entry.module) for v in versions)
        ideal = v1 + 0.25 * (product(fresh, entry.module) - v1)
        ideal += 0.75 * share * (product(late, entry.module) - v0)
        error = float((product(published, entry.module) - ideal).norm() / ideal.norm())
        assert entry.relative_error == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert entry.lower_bound <= entry.relative_error * (1 + 1e-6)


async def test_fedasync_publishes_a_version_for_every_update(tmp_path: Path):
    spec = buffered(engine=RoundEngine.ASYNC, buffer_size=0, mixing=0.5, method="fedit")
    async with serving(tmp_path, spec) as served:
        workers = await joined(served, "a", "b", "c")
        tasks = [await w.task() for w in workers]
        sent = [random_adapter(4, seed=1 + i) for i in range(3)]
        expected = await workers[0].pull_tensors(0)
        for i, (worker, task) in enumerate(zip(workers, tasks, strict=True)):
            await worker.push(task, sent[i])
            share = 0.5 * (1 + i) ** -0.5
            expected = {k: (1 - share) * v + share * sent[i][k] for k, v in expected.items()}
            await report_of(served, i + 1)
        published = await workers[0].pull_tensors(3)
    for key, tensor in expected.items():
        torch.testing.assert_close(published[key], tensor, rtol=1e-5, atol=1e-6)


async def test_a_late_update_is_carried_over_a_restart_and_counted_once(tmp_path: Path):
    spec = run_spec(
        method="flora_na",
        num_rounds=2,
        num_workers=3,
        quorum=2,
        deadline_seconds=0.5,
        late_updates=LateUpdates.CARRY,
    )
    digests = []
    for restarted in (False, True):
        folder = tmp_path / str(restarted)
        async with serving(folder, spec) as served:
            workers = await joined(served, "a", "b", "c")
            tasks = [await w.task() for w in workers]
            for i in range(2):
                await workers[i].push(tasks[i], random_adapter(4, seed=1 + i))
            # The deadline passes without c: the others are asked to score the new version.
            for worker in workers[:2]:
                task = await worker.task()
                assert task.kind == federation_pb2.TASK_KIND_EVALUATE
            answer = await workers[2].push(tasks[2], random_adapter(4, seed=3))
            if not restarted:
                digests.append(await finish(served, workers))
        if restarted:
            async with serving(folder, spec) as served:
                for worker in workers:
                    worker.stub = served.federation
                again = await workers[2].push(tasks[2], random_adapter(4, seed=3))
                assert (again.update_id, again.replayed) == (answer.update_id, True)
                digests.append(await finish(served, workers))
    assert digests[0] == digests[1]


async def test_a_round_closes_within_a_second_of_its_deadline(tmp_path: Path):
    deadline = 1.0
    spec = run_spec(
        num_rounds=1, num_workers=3, quorum=2, deadline_seconds=deadline, evaluate=False
    )
    async with serving(tmp_path, spec) as served:
        *quick, _ = await joined(served, "a", "b", "silent")
        for i, worker in enumerate(quick):
            await worker.push(await worker.task(), random_adapter(4, seed=1 + i))
        seconds = (await report_of(served, 1)).phase_seconds["training"]
    assert deadline <= seconds <= deadline + 1.0


async def finish(served: Served, workers: list[ScriptedWorker]) -> bytes:
    """Round 2 from the scores of round 1 on; the digest of the last version."""
    for worker in workers[:2]:
        await worker.evaluate(await worker.task())
    for i, worker in enumerate(workers[:2]):
        task = await worker.task()
        assert (task.kind, task.round) == (TRAIN, 2)
        await worker.push(task, random_adapter(4, seed=10 + i))
    assert (await workers[2].task()).kind == federation_pb2.TASK_KIND_EVALUATE
    assert len(await served.rounds("test")) == 1
    header, _, _ = await workers[2].pull(2)
    for worker in workers:
        await worker.evaluate(await worker.task())
    _, second = await served.rounds("test")
    assert [(u.worker, u.staleness) for u in second.updates] == [("a", 0), ("b", 0), ("c", 1)]
    return header.digest


MOMENTS = (Failpoint.MID_AGGREGATION, Failpoint.AGGREGATE_STORED, Failpoint.ROUND_COMMITTED)
"""when c is late: some modules are combined; the version is stored; the next round trains"""


@contextmanager
def held_at(point: Failpoint) -> Iterator[threading.Event]:
    """The first aggregation stands still at a point until the block ends; set once it is there."""
    arrived, may_go_on = threading.Event(), threading.Event()

    def reach(passed: Failpoint) -> None:
        if passed is point:
            arrived.set()
            assert may_go_on.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "reach", reach)
        try:
            yield arrived
        finally:
            may_go_on.set()


async def two_rounds(
    folder: Path, policy: LateUpdates, moment: Failpoint | None
) -> tuple[list[str], list[list[tuple[str, int]]]]:
    """Rounds of three that close with two updates; c sends its own of round 1 late, or never.

    Returns:
        Digests of the versions, and of each round which updates count and how late they were.
    """
    rules = {"cohort_size": 2, "over_selection": 0.5, "late_updates": policy, "evaluate": False}
    async with serving(folder, run_spec(method="flora_na", num_rounds=2, **rules)) as served:
        a, b, c = await joined(served, "a", "b", "c")
        tasks = [await w.task() for w in (a, b, c)]
        assert [(t.kind, t.round) for t in tasks] == [(TRAIN, 1)] * 3

        async def come_late() -> None:
            assert moment is not None
            try:
                await c.push(tasks[2], random_adapter(4, seed=3))
            except grpc.aio.AioRpcError as error:
                assert reason_of(error) == "WRONG_ROUND"  # noqa: PT017
                assert policy is LateUpdates.DROP
            else:
                assert policy is LateUpdates.CARRY

        await a.push(tasks[0], random_adapter(4, seed=1))
        if moment in MOMENTS[:2]:
            with held_at(moment) as arrived:
                await b.push(tasks[1], random_adapter(4, seed=2))
                await until(arrived.is_set)
                await come_late()
        else:
            await b.push(tasks[1], random_adapter(4, seed=2))
        seconds = [await w.task() for w in (a, b)]
        assert [(t.kind, t.round) for t in seconds] == [(TRAIN, 2)] * 2
        if moment is Failpoint.ROUND_COMMITTED:
            await come_late()
        await a.push(seconds[0], random_adapter(4, seed=11))
        if policy is LateUpdates.DROP or moment is None:
            await b.push(seconds[1], random_adapter(4, seed=12))
        await report_of(served, 2)
        reports = await served.rounds("test")
        # Asked again, with all behind it: a closed round stays as it was published.
        digests = [(await a.pull(version))[0].digest.hex() for version in (1, 2)]
    assert digests == [report.adapter_digest for report in reports]
    return digests, [[(u.worker, u.staleness) for u in report.updates] for report in reports]


@pytest.fixture(scope="module")
def nobody_late(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The versions that a and b make where c never sends anything."""
    folder = tmp_path_factory.mktemp("nobody_late")
    digests, counted = asyncio.run(two_rounds(folder, LateUpdates.DROP, None))
    assert counted == [[("a", 0), ("b", 0)]] * 2
    return digests


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("policy", LateUpdates)
async def test_a_late_update_changes_no_bit_of_the_closed_round(
    tmp_path: Path, nobody_late: list[str], policy: LateUpdates, moment: Failpoint
):
    digests, counted = await two_rounds(tmp_path, policy, moment)
    assert counted[0] == [("a", 0), ("b", 0)]
    assert digests[0] == nobody_late[0]
    if policy is LateUpdates.DROP:
        assert counted[1] == [("a", 0), ("b", 0)]
        assert digests[1] == nobody_late[1], "it has no effect at all"
    else:
        assert counted[1] == [("a", 0), ("c", 1)]


async def beat(*workers: ScriptedWorker) -> None:
    while True:
        for worker in workers:
            request = federation_pb2.HeartbeatRequest(session_token=worker.token)
            await worker.stub.Heartbeat(request, timeout=30)
        await asyncio.sleep(0.1)


async def test_a_lost_workers_round_is_given_to_one_to_spare(tmp_path: Path):
    spec = run_spec(num_workers=3, quorum=2, cohort_size=2, num_rounds=1, evaluate=False)
    settings = {"worker_timeout_seconds": 1.0, "heartbeat_interval_seconds": 0.2}
    async with serving(tmp_path, spec, **settings) as served:
        workers = {w.name: w for w in await joined(served, "a", "b", "c")}
        tasks = {n: await w.task(max_wait_seconds=0) for n, w in workers.items()}
        asked = sorted(n for n, t in tasks.items() if t.kind == TRAIN)
        (spare,) = {*workers} - {*asked}
        keeps, silent = asked
        beating = asyncio.ensure_future(beat(workers[keeps], workers[spare]))
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        async for message in watch:
            if message.event.type == admin_pb2.EVENT_TYPE_TASK_REASSIGNED:
                break
        watch.cancel()
        beating.cancel()
        assert message.event.worker == spare
        assert message.event.detail["from"] == silent
        task = await workers[spare].task()
        assert (task.kind, task.round) == (TRAIN, 1)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("rolora", "different parts in turn"),
        ("fedsa_lora", "keep parts"),
        ("flora", "base model"),
        ("fedlora_optimizer", "stage after the aggregation"),
    ],
)
async def test_a_method_that_needs_one_version_is_refused_when_the_run_is_created(
    tmp_path: Path, method: str, why: str
):
    from fedlora.wire.convert import to_message

    async with serving(tmp_path, None) as served:
        for spec in (
            buffered(method=method),
            run_spec(method=method, late_updates=LateUpdates.CARRY),
        ):
            request = admin_pb2.CreateRunRequest(spec=to_message(spec, run_pb2.RunSpec))
            with pytest.raises(grpc.aio.AioRpcError, match=why) as caught:
                await served.admin.CreateRun(request, timeout=30)
            assert reason_of(caught.value) == "UNSUPPORTED_METHOD"
