"""Streams that lose messages on their way to a real server: refused, of no effect, and resumed.

gRPC loses messages of a stream that a retry policy sends again, and says OK; so no method of ours
that streams has one. Offsets, size and digest would show it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from safetensors.torch import save
from support.federation import ScriptedWorker, random_adapter, reason_of, serving, upload
from support.runs import run_spec
from support.seeds import seeds_for

from fedlora.digests import new_digest
from fedlora.proto.v1 import federation_pb2 as pb

CHUNKS = 40
LOSSES = [lost for n in (1, 2, 3) for lost in itertools.combinations(range(CHUNKS), n)]
"""which chunks of a stream are lost: every one, two or three of them"""


async def refused(worker: ScriptedWorker, messages: Sequence[pb.PushUpdateRequest]) -> str:
    """The reason why a stream is."""
    while True:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.push_messages(messages)
        # A stream that grpc.aio has hidden the answer of is still being ended.
        if (reason := reason_of(caught.value)) != "UNAVAILABLE":
            return reason


async def lose_and_resume(
    folder: Path, worker: ScriptedWorker, seed: int, losses: Sequence[Sequence[int]]
) -> str:
    """A worker's upload, begun anew for each loss, and after the last one resumed.

    Returns:
        The digest of what was acknowledged in the end.
    """
    task, tensors = await worker.task(), random_adapter(4, seed=seed)
    data = save(tensors)
    size = -(-len(data) // CHUNKS)
    fields = worker.header(task, tensors, data)
    header, *chunks, commit = upload(fields, data, chunk_bytes=size)
    assert len(chunks) == CHUNKS
    for lost in losses:
        left = [chunk for i, chunk in enumerate(chunks) if i not in lost]
        reason = await refused(worker, [header, *left, commit])
        # Where only the end is lost, no offset is wrong.
        is_the_end = lost[0] == CHUNKS - len(lost)
        assert reason == ("UPLOAD_INCOMPLETE" if is_the_end else "OFFSET_MISMATCH"), lost
        status = await worker.upload_status(fields.idempotency_key)
        assert status.state in (pb.UPLOAD_STATE_PARTIAL, pb.UPLOAD_STATE_UNKNOWN), lost
        assert status.durable_bytes == lost[0] * size, f"{lost}: all before the gap, no more"
        kept = b"".join(p.read_bytes() for p in (folder / "state" / "uploads").iterdir())
        assert kept == data[: status.durable_bytes], lost
    fields = worker.header(task, tensors, data, start_offset=status.durable_bytes)
    rest = upload(fields, data, chunk_bytes=size, start_offset=status.durable_bytes)
    answer = await worker.push_messages(rest)
    assert not answer.replayed
    assert answer.digest == new_digest(data).digest()
    return answer.digest.hex()


async def each_is_refused(folder: Path, losses: Sequence[Sequence[int]], num_workers: int) -> None:
    """One round, in which every worker loses its share of them."""
    # Workers that are moved by hand send no heartbeats, and one waits for the other.
    spec = run_spec(num_rounds=1, num_workers=num_workers, deadline_seconds=3600.0)
    async with serving(folder, spec, worker_timeout_seconds=3600.0) as served:
        workers = [await served.worker(f"w-{i}") for i in range(num_workers)]
        first = await workers[0].task()
        await workers[0].push(first, random_adapter(4, seed=0), num_examples=0)
        digests = {}
        store, run_id = served.aggregator.coordinator.store, workers[0].run_id
        for i, worker in enumerate(workers):
            share = losses[i::num_workers]
            digests[worker.name] = await lose_and_resume(folder, worker, 1 + i, share)
            rows = await store.call(lambda s: s.updates(run_id, 1))
            assert {row.worker: row.digest for row in rows} == digests
            assert len(rows) == len(digests)


@pytest.mark.parametrize("seed", seeds_for("test_a_stream_that_lost_messages_counts_nowhere", 1))
async def test_a_stream_that_lost_messages_counts_nowhere(tmp_path: Path, seed: int):
    """Every single chunk, and of every two or three some."""
    losses = [*LOSSES[:CHUNKS], *random.Random(seed).sample(LOSSES[CHUNKS:], 80)]
    await each_is_refused(tmp_path, losses, num_workers=8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_no_three_messages_are_lost_unnoticed(tmp_path: Path):
    await each_is_refused(tmp_path, LOSSES, num_workers=8)
