"""What is left on the server's disk: versions, the newest round's updates, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from safetensors.torch import save
from support.federation import ScriptedWorker, Served, random_adapter, serving, upload
from support.runs import run_spec
from support.waiting import until

from fedlora.digests import new_digest
from fedlora.proto.v1 import admin_pb2
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.rounds import RoundEngine
from fedlora.runs.spec import RunSpec

ROUNDS = 4


async def lived_through(served: Served, ranks: tuple[int, ...]) -> tuple[set[str], list[bytes]]:
    """A run, whole; returns the digests of its last round's updates, and each update's bytes."""
    workers = [await served.worker(f"w-{i}", max_rank=r) for i, r in enumerate(ranks)]
    first = workers[0]
    await first.push(await first.task(), random_adapter(first.rank, seed=0), num_examples=0)
    last, sent = set(), []
    for round in range(1, ROUNDS + 1):
        last = set()
        for number, worker in enumerate(workers):
            task = await worker.task()
            await worker.pull(task.adapter_version)
            tensors = random_adapter(worker.rank, seed=100 * round + number)
            sent.append(save(tensors))
            last.add(new_digest(sent[-1]).hexdigest())
            await worker.push(task, tensors, idempotency_key=f"{round}/{number}")
    return last, sent


def files(folder: Path) -> set[str]:
    return {p.name for p in (folder / "state" / "blobs").rglob("*") if p.is_file()}


async def left(folder: Path, expected: set[str]) -> None:
    """Returns once there is nothing else any more: sweeps come behind the run."""
    await until(lambda: not files(folder) - expected)
    assert files(folder) == expected


async def versions(served: Served, run: str) -> dict[int, str]:
    coordinator = served.aggregator.coordinator
    run_id = coordinator.run(run).state.run_id
    records = await coordinator.store.call(lambda store: store.adapters(run_id))
    return {record.version: record.digest for record in records}


def spec(**changes: object) -> RunSpec:
    return run_spec(method="flora_na", num_rounds=ROUNDS, num_workers=2, evaluate=False, **changes)


async def exported(served: Served, run: str, version: int) -> bytes:
    request = admin_pb2.ExportAdapterRequest(run=run, adapter_version=version)
    messages = [m async for m in served.admin.ExportAdapter(request, timeout=30)]
    return b"".join(m.chunk.data for m in messages)


async def test_a_run_leaves_its_versions_and_the_newest_updates(tmp_path: Path):
    run = spec()
    async with serving(tmp_path, run) as served:
        updates, sent = await lived_through(served, (0, 0))
        await asyncio.wait_for(served.aggregator.wait_until_settled(), 30)
        published = await versions(served, run.name)
        assert [*published] == [*range(ROUNDS + 1)]
        await left(tmp_path, updates | {*published.values()})
        for version, digest in published.items():
            assert new_digest(await exported(served, run.name, version)).hexdigest() == digest
        # Its file is gone, what it was is known: the same bytes count as they did, others do not.
        worker = ScriptedWorker(served.federation, "w-0")
        await worker.register()
        tensors = random_adapter(worker.rank, seed=100)
        assert save(tensors) == sent[0]
        header = worker.header(pb.Task(round=1), tensors, sent[0], idempotency_key="1/0")
        assert (await worker.push_messages(upload(header, sent[0]))).replayed
        assert (await worker.upload_status("1/0")).durable_bytes == len(sent[0])


async def test_copies_at_a_workers_rank_go_when_nobody_asks_for_them(tmp_path: Path):
    run = spec()
    async with serving(tmp_path, run) as served:
        updates, _ = await lived_through(served, (0, 2))
        await asyncio.wait_for(served.aggregator.wait_until_settled(), 30)
        published = {*(await versions(served, run.name)).values()}
        copies = files(tmp_path) - published - updates
        assert copies, "the second worker has been sent files of its own"
    async with serving(tmp_path, run) as served:
        await left(tmp_path, updates | published)
        # And are made again for whoever does.
        worker = ScriptedWorker(served.federation, "w-1")
        await worker.register(max_rank=2)
        header, data, _ = await worker.pull(1)
        assert header.rank == 2
        assert new_digest(data).digest() == header.digest


async def test_versions_made_of_every_update_keep_no_update_either(tmp_path: Path):
    run = spec(engine=RoundEngine.ASYNC, quorum=1)
    async with serving(tmp_path, run, keep_rounds=2) as served:
        workers = [await served.worker(f"w-{i}") for i in range(2)]
        await workers[0].push(await workers[0].task(), random_adapter(4, seed=0), num_examples=0)
        digests = []
        for round in range(ROUNDS):
            worker = workers[round % 2]
            tensors = random_adapter(4, seed=round + 1)
            digests.append(new_digest(save(tensors)).hexdigest())
            await worker.push(await worker.task(), tensors)
        await asyncio.wait_for(served.aggregator.wait_until_settled(), 30)
        published = await versions(served, run.name)
        await left(tmp_path, {*digests[-2:], *published.values()})


async def test_everything_stays_where_that_is_wanted(tmp_path: Path):
    run = spec()
    async with serving(tmp_path, run, keep_rounds=0) as served:
        _, sent = await lived_through(served, (0, 0))
        await asyncio.wait_for(served.aggregator.wait_until_settled(), 30)
        published = await versions(served, run.name)
        unnamed = served.aggregator.coordinator.blobs.new_temporary()
        unnamed.write_text("nobody's")
        blobs = served.aggregator.coordinator.blobs
        blobs.release(blobs.adopt(unnamed))
    async with serving(tmp_path, run, keep_rounds=0):
        await left(
            tmp_path, {*published.values(), *(new_digest(data).hexdigest() for data in sent)}
        )
