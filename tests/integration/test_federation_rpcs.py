"""The protocol, through the generated stubs and a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load, save
from support.federation import ScriptedWorker, random_adapter, reason_of, serving, upload
from support.runs import LAYOUT, run_spec

from fedlora.adapters.names import Factor, lora_key
from fedlora.digests import new_digest
from fedlora.proto.v1 import admin_pb2, federation_pb2, run_pb2
from fedlora.runs.phase import RunPhase


async def start_round(served, *names: str) -> dict[str, tuple[ScriptedWorker, object]]:
    """Joins workers and brings the run to the training of round 1."""
    workers = {n: await served.worker(n) for n in names}
    first = workers[min(names)]
    task = await first.task()
    assert task.kind == federation_pb2.TASK_KIND_INITIALIZE
    await first.push(task, random_adapter(first.rank, seed=0, scale=0.1), num_examples=0)
    return {n: (w, await w.task()) for n, w in workers.items()}


async def finish_evaluation(parts) -> None:
    for worker, _ in parts.values():
        task = await worker.task()
        assert task.kind == federation_pb2.TASK_KIND_EVALUATE
        await worker.evaluate(task)


def products(tensors, scaling: float) -> dict[str, torch.Tensor]:
    return {
        m.path: scaling
        * tensors[lora_key(m.path, Factor.LORA_B)].double()
        @ tensors[lora_key(m.path, Factor.LORA_A)].double()
        for m in LAYOUT.modules
    }


@pytest.mark.parametrize("method", ["fedit", "flora_na", "optimal"])
async def test_a_federation_of_scripted_workers_runs_to_its_end(tmp_path: Path, method: str):
    spec = run_spec(method=method, num_rounds=2)
    async with serving(tmp_path, spec, export_dir=tmp_path / "runs") as served:
        parts = await start_round(served, "w-0", "w-1")
        for round in (1, 2):
            sent = {}
            for i, (name, (worker, _)) in enumerate(parts.items()):
                task = await worker.task()
                assert (task.kind, task.round) == (federation_pb2.TASK_KIND_TRAIN, round)
                sent[name] = random_adapter(worker.rank, seed=10 * round + i)
                await worker.push(task, sent[name], num_examples=10 * (i + 1))
            await finish_evaluation(parts)
        for worker, _ in parts.values():
            assert (await worker.task()).kind == federation_pb2.TASK_KIND_STOP
        worker = parts["w-0"][0]
        published = await worker.pull_tensors(2)
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        events = [m.event async for m in watch]
        report = (
            await served.admin.GetRoundReport(admin_pb2.GetRoundReportRequest(run="test"))
        ).report
    # The certificate against a dense float64 recomputation from the bytes on the wire.
    scaling = spec.adapter.scaling(spec.adapter.r)
    ideal = {
        path: (products(sent["w-0"], scaling)[path] + 2 * products(sent["w-1"], scaling)[path]) / 3
        for path in products(published, scaling)
    }
    for entry in report.certificate.modules:
        error = (products(published, scaling)[entry.module] - ideal[entry.module]).norm()
        dense = float(error / ideal[entry.module].norm())
        assert entry.relative_error == pytest.approx(dense, rel=1e-3, abs=1e-6)
        assert entry.lower_bound <= entry.relative_error * (1 + 1e-6)
    head = "base_model.model.classifier.weight"
    mean = (sent["w-0"][head].double() + 2 * sent["w-1"][head].double()) / 3
    torch.testing.assert_close(published[head].double(), mean, rtol=1e-6, atol=1e-7)
    assert [e.sequence for e in events if e.sequence] == list(range(1, len(events) + 1))
    assert events[-1].type in (
        admin_pb2.EVENT_TYPE_RUN_COMPLETED,
        admin_pb2.EVENT_TYPE_CERTIFICATE_READY,
    )
    assert report.metrics["test_accuracy"] == 0.5
    assert [u.worker for u in report.updates] == ["w-0", "w-1"]
    assert [u.weight for u in report.updates] == pytest.approx([1 / 3, 2 / 3])
    final = tmp_path / "runs" / "test" / "final" / "adapter_model.safetensors"
    assert load(final.read_bytes()).keys() == published.keys()


async def test_arrival_order_changes_no_bit_of_the_result(tmp_path: Path):
    digests = []
    for n, order in enumerate((("w-0", "w-1", "w-2"), ("w-2", "w-0", "w-1"))):
        spec = run_spec(method="flora_na", num_rounds=1, num_workers=3)
        async with serving(tmp_path / str(n), spec) as served:
            parts = await start_round(served, "w-0", "w-1", "w-2")
            for name in order:
                worker, task = parts[name]
                await worker.push(task, random_adapter(4, seed=int(name[-1])))
            await finish_evaluation(parts)
            header, data, _ = await parts["w-0"][0].pull(1)
            assert new_digest(data).digest() == header.digest
            digests.append(header.digest)
    assert digests[0] == digests[1]


async def test_two_workers_upload_at_once(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        answers = await asyncio.gather(
            *(w.push(t, random_adapter(4, seed=i)) for i, (w, t) in enumerate(parts.values()))
        )
        assert len({a.update_id for a in answers}) == 2
        await finish_evaluation(parts)


async def test_an_update_counts_once_however_often_it_is_sent(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        tensors = random_adapter(4, seed=1)
        first = await worker.push(task, tensors)
        again = await worker.push(task, tensors)
        assert again.update_id == first.update_id
        assert again.replayed
        assert not first.replayed
        other, other_task = parts["w-1"]
        await other.push(other_task, random_adapter(4, seed=2))
        await finish_evaluation(parts)
        late = await worker.push(task, tensors)
        assert late.update_id == first.update_id, "also after the round is over"


async def test_a_key_never_stands_for_two_contents(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        await worker.push(task, random_adapter(4, seed=1), idempotency_key="k")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push(task, random_adapter(4, seed=2), idempotency_key="k")
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        status = await worker.upload_status("k")
        assert status.state == federation_pb2.UPLOAD_STATE_COMMITTED


async def test_an_acknowledgement_is_not_given_again_for_bytes_that_were_not_sent_again(
    tmp_path: Path,
):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        tensors = random_adapter(4, seed=1)
        data, other = save(tensors), save(random_adapter(4, seed=2))
        header = worker.header(task, tensors, data, idempotency_key="k")
        await worker.push_messages(upload(header, data))
        # Other bytes, and the commit of the first ones behind them.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push_messages([*upload(header, other)[:-1], upload(header, data)[-1]])
        assert reason_of(caught.value) == "ALREADY_EXISTS"


async def test_a_torn_upload_is_no_update_and_goes_on_where_it_broke(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        tensors = random_adapter(4, seed=1)
        data = save(tensors)
        header = worker.header(task, tensors, data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push_messages(upload(header, data)[:4])
        assert reason_of(caught.value) == "UPLOAD_INCOMPLETE"
        status = await worker.upload_status(header.idempotency_key)
        assert status.state == federation_pb2.UPLOAD_STATE_PARTIAL
        assert status.durable_bytes == 3 * 256
        assert (await worker.task()).task_id == task.task_id, "it has not submitted"
        resumed = worker.header(task, tensors, data, start_offset=status.durable_bytes)
        answer = await worker.push_messages(
            upload(resumed, data, start_offset=status.durable_bytes)
        )
        assert answer.digest == new_digest(data).digest()


async def test_a_stream_that_ends_after_the_last_byte_without_a_commit_is_no_update(
    tmp_path: Path,
):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        tensors = random_adapter(4, seed=1)
        data = save(tensors)
        header = worker.header(task, tensors, data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push_messages(upload(header, data, commit=False))
        assert reason_of(caught.value) == "UPLOAD_INCOMPLETE"
        status = await worker.upload_status(header.idempotency_key)
        assert status.state == federation_pb2.UPLOAD_STATE_PARTIAL
        assert status.durable_bytes == len(data)
        assert (await worker.task()).task_id == task.task_id, "it has not submitted"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 2}, "WRONG_ROUND"),
        ({"round": 0}, "WRONG_ROUND"),
        ({"base_version": 5}, "WRONG_ROUND"),
        ({"task_id": "another"}, "WRONG_TASK"),
        ({"run_id": "another"}, "INVALID_ARGUMENT"),
        ({"session_token": "1/x/y/z"}, "UNKNOWN_SESSION"),
        ({"session_token": ""}, "UNKNOWN_SESSION"),
        ({"start_offset": 7}, "OFFSET_MISMATCH"),
        ({"total_bytes": 2**40}, "TOO_LARGE"),
        ({"total_bytes": 0}, "TOO_LARGE"),
        ({"idempotency_key": ""}, "INVALID_ARGUMENT"),
        ({"idempotency_key": "x" * 600}, "INVALID_ARGUMENT"),
        ({"metrics": {"loss": float("nan")}}, "INVALID_ARGUMENT"),
        ({"metrics": {"../evil\n": 1.0}}, "INVALID_ARGUMENT"),
    ],
)
async def test_a_header_that_is_not_what_was_asked_for_is_refused(
    tmp_path: Path, change: dict[str, object], reason: str
):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push(task, random_adapter(4, seed=1), **change)
        assert reason_of(caught.value) == reason
        leftovers = list((tmp_path / "state").rglob("*.part"))
        assert leftovers == []
        await worker.push(task, random_adapter(4, seed=1))


async def test_bytes_that_are_not_the_manifest_leave_nothing_behind(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        good = random_adapter(4, seed=1)
        blobs = sorted((tmp_path / "state" / "blobs").rglob("*"))
        name = lora_key(LAYOUT.modules[0].path, Factor.LORA_A)
        poisoned = {**good, name: good[name].clone()}
        poisoned[name][0, 0] = float("nan")
        data = save(good)
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        header = worker.header(task, good, data)
        cases = {
            "NOT_FINITE": upload(worker.header(task, poisoned, save(poisoned)), save(poisoned)),
            "MANIFEST_MISMATCH": upload(
                worker.header(task, random_adapter(5, 1), save(random_adapter(5, 1))),
                save(random_adapter(5, 1)),
            ),
            "DIGEST_MISMATCH": [*upload(header, flipped)[:-1], upload(header, data)[-1]],
            "OFFSET_MISMATCH": [*upload(header, data)[:3], *upload(header, data)[4:]],
            "INVALID_PAYLOAD": upload(header, b"\xff" * len(data)),
        }
        for reason, messages in cases.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.push_messages(messages)
            assert reason_of(caught.value) == reason, caught.value.details()
        assert sorted((tmp_path / "state" / "blobs").rglob("*")) == blobs
        await worker.push(task, good)


async def test_a_silent_upload_is_given_up_and_kept_for_resuming(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1), idle_timeout_seconds=0.2) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        tensors = random_adapter(4, seed=1)
        data = save(tensors)
        header = worker.header(task, tensors, data)
        call = served.federation.PushUpdate(timeout=10)
        for message in upload(header, data)[:3]:
            await call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert reason_of(caught.value) == "UPLOAD_STALLED"
        status = await worker.upload_status(header.idempotency_key)
        assert status.durable_bytes == 2 * 256


async def test_a_newer_process_fences_the_older_one_and_keeps_its_place(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1, slots=2)) as served:
        parts = await start_round(served, "w-0", "w-1")
        old, task = parts["w-0"]
        new = ScriptedWorker(served.federation, "w-0", instance_id="instance-2")
        answer = await new.register()
        assert answer.replaced_session
        assert answer.data_slot.index == 0
        for call in (
            old.task(),
            old.confirm(),
            old.push(task, random_adapter(4, seed=1)),
            old.pull(0),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert reason_of(caught.value) == "SESSION_FENCED"
        await new.confirm()
        assert (await new.task()).task_id == task.task_id


async def test_a_retried_registration_of_one_process_fences_nobody(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        worker = await served.worker("w-0")
        overtaken = worker.token
        again = await worker.register()
        assert not again.replaced_session
        # Without it any token would be unknown: of what has not confirmed nothing is expected.
        await worker.confirm()
        worker.token = overtaken
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.task(max_wait_seconds=0)
        assert reason_of(caught.value) == "UNKNOWN_SESSION", "it registers again, and goes on"


async def test_who_asks_for_a_task_before_confirming_is_told_to_confirm(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        worker = ScriptedWorker(served.federation, "w-0")
        await worker.register()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.task()
        assert reason_of(caught.value) == "UNKNOWN_SESSION"
        assert "ConfirmAdapter" in str(caught.value.details())


async def test_an_adapter_is_pulled_whole_or_from_an_offset(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, _ = parts["w-1"]
        header, data, end = await worker.pull(0)
        assert len(data) == header.total_bytes == end.commit.total_bytes
        assert new_digest(data).digest() == header.digest == end.commit.digest
        _, rest, _ = await worker.pull(0, start_offset=100)
        assert rest == data[100:]
        for version, offset, reason in ((9, 0, "NOT_FOUND"), (0, 10**9, "OFFSET_MISMATCH")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.pull(version, start_offset=offset)
            assert reason_of(caught.value) == reason


async def test_a_worker_that_holds_a_version_nobody_knows_is_sent_everything(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_rounds=1)) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, _ = parts["w-1"]
        _, whole, _ = await worker.pull(0)
        request = federation_pb2.PullAdapterRequest(
            session_token=worker.token, adapter_version=0, held_version=99
        )
        messages = [m async for m in served.federation.PullAdapter(request, timeout=30)]
        assert not messages[0].header.HasField("held_version")
        assert b"".join(m.chunk.data for m in messages[1:-1]) == whole


async def test_workers_of_lower_rank_get_an_adapter_of_their_own_rank(tmp_path: Path):
    spec = run_spec(method="optimal", num_rounds=1)
    async with serving(tmp_path, spec) as served:
        big = await served.worker("w-0")
        small = await served.worker("w-1", max_rank=2)
        assert (big.rank, small.rank) == (4, 2)
        await big.push(await big.task(), random_adapter(4, seed=0), num_examples=0)
        tasks = {w.name: await w.task() for w in (big, small)}
        await big.push(tasks["w-0"], random_adapter(4, seed=1))
        await small.push(tasks["w-1"], random_adapter(2, seed=2))
        await finish_evaluation({"a": (big, None), "b": (small, None)})
        full, sliced = await big.pull_tensors(1), await small.pull_tensors(1)
    for module in LAYOUT.modules:
        a, b = (lora_key(module.path, f) for f in (Factor.LORA_A, Factor.LORA_B))
        assert sliced[a].shape == (2, module.in_features)
        served_full = spec.adapter.scaling(4) * full[b][:, :2] @ full[a][:2]
        served_sliced = spec.adapter.scaling(2) * sliced[b] @ sliced[a]
        torch.testing.assert_close(served_sliced, served_full)


async def test_factor_means_refuse_a_worker_of_another_rank(tmp_path: Path):
    async with serving(tmp_path, run_spec(method="fedit")) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.worker("w-0", max_rank=2)
        assert reason_of(caught.value) == "UNSUPPORTED_METHOD"
        assert "max_rank" in caught.value.details()


async def test_a_task_is_there_as_soon_as_it_exists(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        first = await served.worker("w-0")
        waiting = asyncio.ensure_future(first.task(max_wait_seconds=30))
        await served.worker("w-1")
        task = await asyncio.wait_for(waiting, timeout=30)
        assert task.kind == federation_pb2.TASK_KIND_INITIALIZE


async def test_calls_of_one_worker_that_wait_for_a_task_leave_the_others_their_places(
    tmp_path: Path,
):
    run = run_spec(num_workers=3)
    async with serving(tmp_path, run, max_concurrent_rpcs=20) as served:
        greedy, honest = await served.worker("greedy"), await served.worker("honest")
        calls = [asyncio.ensure_future(greedy.task(60.0)) for _ in range(20)]
        refused, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 12:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= more
        errors = [call.exception() for call in refused]
        assert [reason_of(error) for error in errors] == ["SERVER_BUSY"] * 12
        assert (await honest.task(0.01)).kind == federation_pb2.TASK_KIND_WAIT
        for call in waiting:
            call.cancel()


async def test_a_heartbeat_says_whether_the_work_still_counts(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]

        async def directive() -> int:
            request = federation_pb2.HeartbeatRequest(
                session_token=worker.token, task_id=task.task_id
            )
            return (await served.federation.Heartbeat(request, timeout=30)).directive

        assert await directive() == federation_pb2.DIRECTIVE_CONTINUE
        await served.admin.StopRun(admin_pb2.StopRunRequest(run="test", reason="enough"))
        assert await directive() == federation_pb2.DIRECTIVE_ABANDON_TASK
        stop = await worker.task()
        assert (stop.kind, stop.reason) == (federation_pb2.TASK_KIND_STOP, "enough")


async def test_what_a_leaving_worker_says_moves_nobodys_terminal(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        worker = await served.worker("w-0")
        request = federation_pb2.LeaveRequest(
            session_token=worker.token, reason="bye\x1b]52;c;ZXZpbA==\x07\r\nw-1 über \u202e"
        )
        await served.federation.Leave(request, timeout=30)
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test"))
        events = [m.event async for m in watch]
        left = admin_pb2.EVENT_TYPE_WORKER_LEFT
        said = [event.detail["reason"] for event in events if event.type == left]
        assert said == ["bye ]52;c;ZXZpbA==   w-1 über  "]


async def test_who_starts_or_stops_a_run_at_the_same_time_as_another_is_told_how_it_stands(
    tmp_path: Path,
):
    async with serving(tmp_path, None) as served:
        coordinator = served.aggregator.coordinator
        await coordinator.create_run(run_spec(), start=False)
        started = await asyncio.gather(*(coordinator.start_run("test") for _ in range(2)))
        assert [run.phase for run in started] == [RunPhase.WAITING] * 2
        stopped = await asyncio.gather(*(coordinator.stop_run("test", why) for why in "ab"))
        assert [run.reason for run in stopped] == ["a", "a"]


async def test_a_silent_worker_is_lost_and_comes_back_by_being_heard(tmp_path: Path):
    settings = {"worker_timeout_seconds": 0.3, "heartbeat_interval_seconds": 0.1}
    async with serving(tmp_path, run_spec(num_workers=2), **settings) as served:
        worker = await served.worker("w-0")
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        async for message in watch:
            if message.event.type == admin_pb2.EVENT_TYPE_WORKER_LOST:
                break
        request = federation_pb2.HeartbeatRequest(session_token=worker.token)
        await served.federation.Heartbeat(request, timeout=30)
        async for message in watch:
            if message.event.type == admin_pb2.EVENT_TYPE_WORKER_READY:
                break
        assert message.event.worker == "w-0"
        watch.cancel()


async def test_a_worker_that_was_lost_brings_what_it_has_trained(tmp_path: Path):
    settings = {"worker_timeout_seconds": 0.3, "heartbeat_interval_seconds": 0.1}
    async with serving(tmp_path, run_spec(), **settings) as served:
        parts = await start_round(served, "w-0", "w-1")
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        missing = {*parts}
        async for message in watch:
            if message.event.type == admin_pb2.EVENT_TYPE_WORKER_LOST:
                missing.discard(message.event.worker)
            if not missing:
                break
        watch.cancel()
        worker, task = parts["w-0"]
        request = federation_pb2.HeartbeatRequest(session_token=worker.token, task_id=task.task_id)
        beat = await served.federation.Heartbeat(request, timeout=30)
        assert beat.directive == federation_pb2.DIRECTIVE_CONTINUE
        worker, task = parts["w-1"]
        answer = await worker.push(task, random_adapter(worker.rank, seed=1))
        assert not answer.replayed


async def test_nobody_is_lost_at_the_moment_of_joining(tmp_path: Path):
    async with serving(tmp_path, run_spec(num_workers=20)) as served:
        await asyncio.gather(*(served.worker(f"w-{i}") for i in range(20)))
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test"))
        types = [m.event.type async for m in watch]
        assert types.count(admin_pb2.EVENT_TYPE_WORKER_READY) == 20
        assert admin_pb2.EVENT_TYPE_WORKER_LOST not in types


async def test_progress_reaches_those_who_watch(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        progress = federation_pb2.Progress(
            task_id=task.task_id, completed_steps=3, total_steps=9, metrics={"loss": 0.5}
        )
        async for message in watch:
            event = message.event
            if event.type == admin_pb2.EVENT_TYPE_WORKER_PROGRESS:
                break
            await served.federation.ReportMetrics(
                federation_pb2.ReportMetricsRequest(session_token=worker.token, progress=progress)
            )
        assert (event.worker, event.sequence) == ("w-0", 0)
        assert event.detail["completed_steps"] == 3
        watch.cancel()


async def test_health_says_serving_for_each_service(tmp_path: Path):
    async with serving(tmp_path, None) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        for name in (
            "",
            "fedlora.proto.v1.FederationService",
            "fedlora.proto.v1.AdminService",
        ):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_runs_are_created_once_and_another_spec_of_the_name_is_refused(tmp_path: Path):
    from fedlora.wire.convert import to_message

    async with serving(tmp_path, None) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.worker("w-0")
        assert reason_of(caught.value) == "NO_OPEN_RUN"

        async def create(spec):
            message = to_message(spec, run_pb2.RunSpec)
            return (await served.admin.CreateRun(admin_pb2.CreateRunRequest(spec=message))).run

        first = await create(run_spec())
        assert first.phase == run_pb2.RUN_PHASE_CREATED
        assert (await create(run_spec())).run_id == first.run_id
        for spec, reason in (
            (run_spec(num_rounds=9), "ALREADY_EXISTS"),
            (run_spec("other", method="florana"), "UNSUPPORTED_METHOD"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await create(spec)
            assert reason_of(caught.value) == reason
        started = await served.admin.StartRun(admin_pb2.StartRunRequest(run="test"))
        assert started.run.phase == run_pb2.RUN_PHASE_WAITING
        runs = (await served.admin.ListRuns(admin_pb2.ListRunsRequest())).runs
        assert [r.spec.name for r in runs] == ["test"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.admin.GetRun(admin_pb2.GetRunRequest(run="missing"))
        assert reason_of(caught.value) == "NOT_FOUND"


async def test_the_wrong_base_model_is_refused_with_both_fingerprints(tmp_path: Path):
    from dataclasses import replace

    async with serving(tmp_path, run_spec()) as served:
        await served.worker("w-0")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.worker("w-1", layout=replace(LAYOUT, base_fingerprint="sha256:other"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(caught.value) == "BASE_MISMATCH"
        for fingerprint in ("sha256:base", "sha256:other"):
            assert fingerprint in caught.value.details()


async def test_a_restarted_server_goes_on_in_the_middle_of_the_round(tmp_path: Path):
    spec = run_spec(method="flora_na", num_rounds=1)
    async with serving(tmp_path, spec) as served:
        parts = await start_round(served, "w-0", "w-1")
        worker, task = parts["w-0"]
        acknowledged = await worker.push(task, random_adapter(4, seed=1))
        tokens = {n: w.token for n, (w, _) in parts.items()}
        run_id = worker.run_id
    async with serving(tmp_path, spec) as served:
        workers = {n: ScriptedWorker(served.federation, n) for n in tokens}
        for name, worker in workers.items():
            worker.token, worker.run_id, worker.rank = tokens[name], run_id, 4
        again = await workers["w-0"].push(task, random_adapter(4, seed=1))
        assert (again.update_id, again.replayed) == (acknowledged.update_id, True)
        await workers["w-1"].push(await workers["w-1"].task(), random_adapter(4, seed=2))
        for worker in workers.values():
            await worker.evaluate(await worker.task())
        for worker in workers.values():
            assert (await worker.task()).kind == federation_pb2.TASK_KIND_STOP
