"""Calls as the server counts them, however they end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import save
from support.federation import Served, random_adapter, serving, upload
from support.observed_federation import scrape
from support.runs import run_spec

from fedlora.proto.v1 import federation_pb2 as pb


async def page(served: Served) -> str:
    return await asyncio.to_thread(scrape, served.aggregator.metrics_address)


def calls(page: str, method: str) -> dict[str, float]:
    """Ended calls of a method by code."""
    begin = "fedlora_rpcs_total{code="
    found = [line for line in page.splitlines() if line.startswith(begin) and f'"{method}"' in line]
    counts = {line.split('"')[1]: float(line.split()[-1]) for line in found}
    return {code: count for code, count in counts.items() if count}


def samples(page: str) -> dict[str, float]:
    """Samples without labels, by name."""
    lines = [line.split() for line in page.splitlines() if line[:1] != "#" and "{" not in line]
    return {name: float(value) for name, value in lines}


async def samples_with(served: Served, name: str) -> dict[str, float]:
    """Samples without labels, once the one of that name is above zero."""
    async with asyncio.timeout(30):
        while not (seen := samples(await page(served)))[name]:
            pass
    return seen


async def test_a_call_is_counted_by_the_code_it_ended_with(tmp_path: Path):
    async with serving(tmp_path, run_spec("test"), metrics_address="127.0.0.1:0") as served:
        worker = await served.worker("w")
        await served.federation.Heartbeat(pb.HeartbeatRequest(session_token=worker.token))
        with pytest.raises(grpc.aio.AioRpcError):
            await served.federation.Heartbeat(pb.HeartbeatRequest(session_token="nobody"))
        found = calls(await page(served), "Heartbeat")
        assert found["OK"] == 1
        assert sum(found.values()) == 2


async def test_a_caller_that_hangs_up_has_cancelled(tmp_path: Path):
    async with serving(tmp_path, run_spec("test"), metrics_address="127.0.0.1:0") as served:
        worker = await served.worker("w")
        request = pb.AwaitTaskRequest(session_token=worker.token, max_wait_seconds=30.0)
        while not calls(await page(served), "AwaitTask"):
            call = served.federation.AwaitTask(request, timeout=60.0)
            await asyncio.sleep(0.05)
            call.cancel()
        assert calls(await page(served), "AwaitTask").keys() == {"CANCELLED"}


async def test_a_call_that_its_deadline_ends_is_counted_so(tmp_path: Path):
    async with serving(tmp_path, run_spec("test"), metrics_address="127.0.0.1:0") as served:
        worker = await served.worker("w")
        request = pb.AwaitTaskRequest(session_token=worker.token, max_wait_seconds=30.0)
        while calls(await page(served), "AwaitTask").get("DEADLINE_EXCEEDED", 0.0) < 1:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.federation.AwaitTask(request, timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_mistake_inside_is_counted_as_internal(tmp_path: Path, monkeypatch):
    async with serving(tmp_path, run_spec("test"), metrics_address="127.0.0.1:0") as served:
        monkeypatch.setattr(served.aggregator.workers, "heartbeat", None)
        first = 'fedlora_rpcs_total{code="INTERNAL",method="Heartbeat"} 0.0'
        assert first in (await page(served)).splitlines()
        with pytest.raises(grpc.aio.AioRpcError):
            await served.federation.Heartbeat(pb.HeartbeatRequest(session_token="x"))
        assert calls(await page(served), "Heartbeat") == {"INTERNAL": 1.0}


async def test_what_others_serve_is_counted_and_what_nobody_serves_is_not(tmp_path: Path):
    async with serving(tmp_path, run_spec("test"), metrics_address="127.0.0.1:0") as served:
        health = health_pb2_grpc.HealthStub(served.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        invented = served.channel.unary_unary("/x.Y/Invented", lambda _: b"", lambda _: None)
        with pytest.raises(grpc.aio.AioRpcError):
            await invented(b"")
        found = await page(served)
        assert calls(found, "Check") == {"OK": 1.0}
        assert "Invented" not in found


async def test_a_download_that_goes_on_counts_only_what_is_sent(tmp_path: Path):
    async with serving(tmp_path, run_spec("test"), metrics_address="127.0.0.1:0") as served:
        workers = [await served.worker("a"), await served.worker("b")]
        await workers[0].push(await workers[0].task(), random_adapter(workers[0].rank, 0))
        header, _, _ = await workers[0].pull(0)
        await workers[0].pull(0, start_offset=header.total_bytes - 10)
        sent = f'fedlora_payload_bytes_total{{direction="out"}} {header.total_bytes + 10:.1f}'
        assert sent in await page(served)


async def test_uploads_that_wait_are_shown_and_the_rates_of_those_that_came(tmp_path: Path):
    settings = {"max_uploads": 1, "upload_wait_seconds": 60.0, "metrics_address": "127.0.0.1:0"}
    async with serving(tmp_path, run_spec("test"), **settings) as served:
        one, two = [await served.worker(name) for name in ("a", "b")]
        await one.push(await one.task(), random_adapter(one.rank, 0))
        task, tensors = await one.task(), random_adapter(one.rank, 1)
        data = save(tensors)
        *first, last = upload(one.header(task, tensors, data), data)
        push = one.stub.PushUpdate(timeout=60)
        for message in first:
            await push.write(message)
        await samples_with(served, "fedlora_uploads_active")
        other = asyncio.create_task(two.push(await two.task(), random_adapter(two.rank, 2)))
        seen = await samples_with(served, "fedlora_uploads_waiting")
        assert (seen["fedlora_uploads_active"], seen["fedlora_uploads_waiting"]) == (1, 1)
        assert seen["fedlora_upload_rate_bytes_per_second_count"] == 1
        await push.write(last)
        await push.done_writing()
        await asyncio.gather(push, other)
        seen = samples(await page(served))
        assert (seen["fedlora_uploads_active"], seen["fedlora_uploads_waiting"]) == (0, 0)
        assert seen["fedlora_upload_rate_bytes_per_second_count"] == 3
        assert seen["fedlora_upload_rate_bytes_per_second_sum"] > 0


async def test_without_an_address_there_is_no_page(tmp_path: Path):
    async with serving(tmp_path, run_spec("test")) as served:
        assert served.aggregator.metrics_address == ""
