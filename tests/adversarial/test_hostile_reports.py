"""Workers whose words about themselves would cost everybody who looks at the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.federation import reason_of, serving
from support.runs import LAYOUT, run_spec

from fedlora.adapters.spec import AdaptedModule
from fedlora.proto.v1 import admin_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.channel import MAX_MESSAGE_BYTES

ESCAPES = "\x1b[2J\x9b31m\n\u2028x"


@pytest.mark.parametrize(
    "hostile",
    [
        {"device_name": "x" * 1_900_000},
        {"device_uuid": ESCAPES},
        {"versions": {"torch": "2" * 257}},
        {"plugins": ["p"] * 257},
        {"codecs": [1] * 257},
        {"versions": {f"{i:03}{'字' * 200}": "x" for i in range(30)}},
    ],
    ids=["a long name", "escapes", "a long version", "many plug-ins", "many codecs", "a long list"],
)
async def test_capabilities_that_nobody_could_be_shown_are_refused(
    tmp_path: Path, hostile: dict[str, Any]
):
    request = pb.RegisterRequest(
        worker_name="w-0",
        instance_id="i",
        capabilities=pb.Capabilities(role=pb.ROLE_PARTY, **hostile),
    )
    async with serving(tmp_path, run_spec()) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.federation.Register(request, timeout=30)
        assert reason_of(caught.value) == "INVALID_ARGUMENT"
        runs = await served.admin.ListRuns(admin_pb2.ListRunsRequest(), timeout=30)
        assert not runs.runs[0].workers


async def test_a_run_of_which_there_is_more_to_tell_than_a_worker_may_send_is_shown(
    tmp_path: Path,
):
    long = "x" * 2040
    layout = replace(
        LAYOUT,
        modules=tuple(
            AdaptedModule(path=f"{long}{i}", in_features=1, out_features=1) for i in range(1000)
        ),
    )
    said = pb.Capabilities(role=pb.ROLE_PARTY, plugins=[long[:200]] * 70)
    async with serving(tmp_path, run_spec()) as served:
        await served.worker("w-0", layout=layout)
        for name in ("w-1", "w-2", "w-3", "w-4", "w-5"):
            request = pb.RegisterRequest(worker_name=name, instance_id="i", capabilities=said)
            await served.federation.Register(request, timeout=30)
        shown = await served.admin.GetRun(admin_pb2.GetRunRequest(run="test"), timeout=30)
        assert shown.ByteSize() > MAX_MESSAGE_BYTES
        assert len(shown.run.workers) == 6


async def test_progress_that_no_watcher_could_be_sent_is_refused(tmp_path: Path):
    many = {f"m{i}": 1.0 for i in range(90_000)}
    async with serving(tmp_path, run_spec()) as served:
        worker = await served.worker("w-0")
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test", follow=True))
        events = aiter(watch)
        while (await anext(events)).event.type != admin_pb2.EVENT_TYPE_WORKER_READY:
            pass
        for hostile in (many, {"m\x1b": 1.0}):
            progress = pb.Progress(task_id="t", metrics=hostile)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.stub.ReportMetrics(
                    pb.ReportMetricsRequest(session_token=worker.token, progress=progress),
                    timeout=30,
                )
            assert reason_of(caught.value) == "INVALID_ARGUMENT"
        # Metrics that are called as what the server says itself take the place of nothing.
        metrics = {"loss": 0.5, "task_id": 3.0, "completed_steps": 1e280}
        progress = pb.Progress(task_id=ESCAPES * 9999, completed_steps=2, metrics=metrics)
        await worker.stub.ReportMetrics(
            pb.ReportMetricsRequest(session_token=worker.token, progress=progress), timeout=30
        )
        event = (await anext(events)).event
        assert event.type == admin_pb2.EVENT_TYPE_WORKER_PROGRESS
        assert event.detail["loss"] == 0.5
        assert event.detail["completed_steps"] == 2
        assert event.detail["task_id"].isprintable()


async def test_a_goodbye_moves_no_cursor(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        worker = await served.worker("w-0")
        await worker.stub.Leave(
            pb.LeaveRequest(session_token=worker.token, reason=ESCAPES), timeout=30
        )
        watch = served.admin.WatchRun(admin_pb2.WatchRunRequest(run="test"))
        (left,) = [m.event async for m in watch if m.event.type == admin_pb2.EVENT_TYPE_WORKER_LEFT]
        assert left.detail["reason"] == " [2J 31m  x"


async def test_the_reason_of_a_stop_moves_no_cursor(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        request = admin_pb2.StopRunRequest(run="test", reason=ESCAPES)
        stopped = await served.admin.StopRun(request, timeout=30)
        assert stopped.run.reason == " [2J 31m  x"
