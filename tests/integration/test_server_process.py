"""The real server process: killed in mid-round, terminated, measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save
from support.federation import ScriptedWorker, connected, random_adapter, upload
from support.processes import ServerProcess
from support.runs import LAYOUT, run_spec

from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.digests import new_digest
from fedlora.proto.v1 import admin_pb2, federation_pb2, tensor_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.tasks import UpdateHeader
from fedlora.tensors.header import encode_header
from fedlora.tensors.manifest import DataType
from fedlora.wire.convert import to_message

NAMES = tuple(f"w-{i}" for i in range(20))


async def federation_with_a_kill(folder: Path, kill_after: int | None) -> tuple[bytes, list[str]]:
    """One round of 20 workers; returns the final adapter's digest and all update digests.

    The server is killed after `kill_after` acknowledged updates, with one upload torn in its
    middle, and started again; None lets it live.
    """
    folder.mkdir()
    spec = run_spec(method="flora_na", num_rounds=1, num_workers=len(NAMES))
    with ServerProcess(folder, spec) as server:
        async with connected(server.address) as served:
            workers = {n: await served.worker(n) for n in NAMES}
            first = workers[NAMES[0]]
            await first.push(await first.task(), random_adapter(4, seed=0), num_examples=0)
            acknowledged = {}
            before = NAMES if kill_after is None else NAMES[:kill_after]
            for name in before:
                acknowledged[name] = await push(workers[name])
            if kill_after is not None:
                torn = workers[NAMES[kill_after]]
                tensors = random_adapter(4, seed=100 + kill_after)
                header = torn.header(await torn.task(), tensors, save(tensors))
                call = served.federation.PushUpdate(timeout=30)
                for message in upload(header, save(tensors))[:4]:
                    await call.write(message)
                server.kill()
        if kill_after is not None:
            server.start()
        async with connected(server.address) as served:
            for name, worker in workers.items():
                worker.stub = served.federation
                answer = await push(worker) if name not in acknowledged else acknowledged[name]
                acknowledged[name] = answer
            for worker in workers.values():
                task = await worker.task()
                assert task.kind == federation_pb2.TASK_KIND_EVALUATE
                await worker.evaluate(task)
            report = await served.admin.GetRoundReport(
                admin_pb2.GetRoundReportRequest(run="test"), timeout=10
            )
            header, data, _ = await first.pull(1)
        assert new_digest(data).digest() == header.digest
        stored = {u.worker: u.digest for u in report.report.updates}
        assert stored == {n: a.digest.hex() for n, a in acknowledged.items()}
        assert server.terminate() == 0
    return header.digest, sorted(stored.values())


async def push(worker: ScriptedWorker) -> pb.PushUpdateResponse:
    task = await worker.task()
    assert task.kind == federation_pb2.TASK_KIND_TRAIN
    return await worker.push(task, random_adapter(4, seed=100 + NAMES.index(worker.name)))


async def test_a_server_killed_in_mid_round_ends_with_the_same_adapter_bit_for_bit(tmp_path: Path):
    undisturbed = await federation_with_a_kill(tmp_path / "whole", None)
    killed = await federation_with_a_kill(tmp_path / "killed", 13)
    assert killed == undisturbed


async def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with ServerProcess(tmp_path / "a", run_spec()):
        (tmp_path / "b").mkdir()
        second = ServerProcess(tmp_path / "b", run_spec(), state_dir=tmp_path / "a" / "state")
        with pytest.raises(AssertionError, match="another aggregator"):
            second.start()
        assert second.process is not None
        assert second.process.wait(10) != 0


@pytest.mark.timeout(170)
async def test_an_upload_of_512_mb_needs_no_memory_of_its_size(tmp_path: Path):
    """Peak RssAnon stays within 32 MiB of the idle figure."""
    rank, width = 1024, 65536
    layout = AdapterLayout(
        modules=(AdaptedModule(path="wide", in_features=width, out_features=width),),
        saved_tensors=(),
        base_fingerprint=LAYOUT.base_fingerprint,
    )
    manifest = layout.manifest(rank, DataType.F32)
    head = encode_header(manifest, {"format": "pt"})
    total = len(head) + manifest.data_bytes
    assert total > 512 * 1024**2
    with ServerProcess(tmp_path, run_spec(rank=rank)) as server:
        async with connected(server.address) as served:
            worker = await served.worker("w-0", layout=layout)
            await served.worker("w-1", layout=layout)
            task = await worker.task()
            idle = peak = server.rss_anon_bytes()

            def messages() -> Iterator[pb.PushUpdateRequest]:
                nonlocal peak
                header = UpdateHeader(
                    session_token=worker.token,
                    run_id=worker.run_id,
                    task_id=task.task_id,
                    round=0,
                    base_version=0,
                    idempotency_key="large",
                    total_bytes=total,
                    manifest=manifest,
                    num_examples=1,
                )
                yield pb.PushUpdateRequest(header=to_message(header, pb.UpdateHeader))
                digest, sent, zeros = new_digest(), 0, bytes(1024**2)
                while sent < total:
                    data = (head if sent == 0 else zeros)[: total - sent]
                    chunk = tensor_pb2.PayloadChunk(offset=sent, data=data)
                    digest.update(data)
                    sent += len(data)
                    peak = max(peak, server.rss_anon_bytes())
                    yield pb.PushUpdateRequest(chunk=chunk)
                end = tensor_pb2.PayloadCommit(total_bytes=total, digest=digest.digest())
                yield pb.PushUpdateRequest(commit=end)

            answer = await served.federation.PushUpdate(messages(), timeout=150)
            peak = max(peak, server.rss_anon_bytes())
            assert answer.total_bytes == total
    assert peak - idle < 32 * 1024**2, f"idle {idle / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB"
