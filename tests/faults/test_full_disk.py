"""A disk that is full for a while: refusals, no acknowledgement, and then everything goes on."""

from __future__ import annotations

import resource
from pathlib import Path

import grpc
import pytest
from support.federation import connected, random_adapter, reason_of
from support.processes import ServerProcess
from support.runs import run_spec

from aggregator_service.store.sqlite import DATABASE_NAME
from fedlora.proto.v1 import federation_pb2 as pb


def largest_file(server: ServerProcess, num_bytes: int) -> None:
    """The kernel lets no file of the server grow beyond this, as on a full disk."""
    assert server.process is not None
    hard = resource.RLIM_INFINITY
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))


@pytest.mark.parametrize("full", ["upload", "database"])
async def test_a_full_disk_refuses_updates_and_takes_them_once_there_is_room(
    tmp_path: Path, full: str
):
    spec = run_spec(num_rounds=1, num_workers=6)
    with ServerProcess(tmp_path, spec) as server:
        async with connected(server.address) as served:
            workers = [await served.worker(f"w-{i}") for i in range(6)]
            await workers[0].push(
                await workers[0].task(), random_adapter(4, seed=0), num_examples=0
            )
            log = tmp_path / "state" / f"{DATABASE_NAME}-wal"
            refused = set()
            for i, worker in enumerate(workers[:5]):
                task, tensors = await worker.task(), random_adapter(4, seed=1 + i)
                # The update has more bytes than this, or the database's log, and has it already.
                room = 1000 if full == "upload" else log.stat().st_size
                assert (room > 2000) == (full == "database")
                largest_file(server, room)
                with pytest.raises(grpc.RpcError) as caught:
                    await worker.push(task, tensors, idempotency_key=f"k-{i}")
                refused.add(reason_of(caught.value))
                largest_file(server, resource.RLIM_INFINITY)
                status = await worker.upload_status(f"k-{i}")
                assert status.state != pb.UPLOAD_STATE_COMMITTED
                answer = await worker.push(task, tensors, idempotency_key=f"k-{i}")
                assert not answer.replayed
                assert (await worker.upload_status(f"k-{i}")).state == pb.UPLOAD_STATE_COMMITTED
            assert refused <= {"OUT_OF_SPACE", "DISK_FAILED"}
        assert server.terminate() == 0
