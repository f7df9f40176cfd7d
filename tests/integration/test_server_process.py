"""The real server process: killed in mid-round, terminated, measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save
from support.federation import ScriptedWorker, connected, random_adapter, upload
from support.large_upload_process import PeakMemory, upload_in_a_process
from support.processes import ServerProcess
from support.runs import run_spec

from fedlora.digests import new_digest
from fedlora.proto.v1 import admin_pb2, federation_pb2
from fedlora.proto.v1 import federation_pb2 as pb

NAMES = tuple(f"w-{i}" for i in range(20))

MEMORY = 16 * 1024**2
"""what either end may need besides its tensors for an upload of any size; the worker takes 4 MiB,
the server 11 to 14, also where its disk or a crowded machine keeps it from reading (measured): the
window of a stream is 4 MiB, and a message has 1"""


async def federation_with_a_kill(folder: Path, kill_after: int | None) -> tuple[bytes, list[str]]:
    """One round of 20 workers; returns the final adapter's digest and all update digests.

    The server is killed after `kill_after` acknowledged updates, with one upload torn in its
    middle, and started again; None lets it live.
    """
    folder.mkdir()
    spec = run_spec(method="flora_na", num_rounds=1, num_workers=len(NAMES))
    with ServerProcess(folder, spec, is_forked=False) as server:
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
def test_an_upload_of_512_mb_needs_no_memory_of_its_size_at_either_end(tmp_path: Path):
    """Peak RssAnon stays near what either process has before its first byte moves.

    The best of three: by when which thread frees a message, the allocator keeps 11 to 17 MiB.
    """
    grown = [MEMORY]
    for attempt in range(3):
        if max(grown) < MEMORY:
            break
        grown = growth_of_an_upload(tmp_path / str(attempt))
    assert max(grown) < MEMORY


def growth_of_an_upload(folder: Path) -> list[int]:
    """Bytes that the server and the sender have at most, above what they began with."""
    folder.mkdir()
    rank = 1024
    with ServerProcess(folder, run_spec(rank=rank), is_forked=False) as server:
        assert server.process is not None
        sender = upload_in_a_process(server.address, rank=rank, width=65536)
        with PeakMemory(server.process.pid) as memory:
            output, _ = sender.communicate()
    assert sender.returncode == 0
    sent = json.loads(output)
    assert sent["total_bytes"] > 512 * 1024**2
    return [memory.peak_bytes - memory.base_bytes, sent["peak"] - sent["base"]]
