"""A second run on a server that is busy aggregating nearly all of the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.federation import ScriptedWorker, connected, random_adapter
from support.runs import run_spec
from support.senders import Sender, Update

from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora_cli.admin_client import AdminClient

__all__ = ["aggregating"]

_NAME = "heavy"
_NUM_WORKERS = 4
_RANK = 64
_LAYOUT = AdapterLayout(
    modules=tuple(
        AdaptedModule(path=f"layers.{i}", in_features=768, out_features=768) for i in range(24)
    ),
    saved_tensors=(),
    base_fingerprint="sha256:base",
)


@asynccontextmanager
async def aggregating(address: str) -> AsyncIterator[list[float]]:
    """Rounds of the optimal method, one after the other.

    Yields:
        seconds that each round has been in aggregation, complete on exit.
    """
    spec = run_spec(
        _NAME, method="optimal", num_rounds=1000, num_workers=_NUM_WORKERS, rank=_RANK,
        deadline_seconds=36_000.0, evaluate=False,
    )  # fmt: skip
    seconds: list[float] = []
    with AdminClient(address) as admin:
        await asyncio.to_thread(admin.create_run, spec, start=True)
        async with connected(address) as served:
            workers = [ScriptedWorker(served.federation, f"heavy-{i}") for i in range(_NUM_WORKERS)]
            for worker in workers:
                await worker.register(run_name=_NAME)
                await worker.confirm(_LAYOUT)
            updates = [
                Update.of(random_adapter(_RANK, seed=i, layout=_LAYOUT))
                for i in range(_NUM_WORKERS)
            ]
            await Sender(workers[0], await workers[0].task(), updates[0]).send()
            async with asyncio.TaskGroup() as group:
                pairs = zip(workers, updates, strict=True)
                driving = [group.create_task(_work(worker, update)) for worker, update in pairs]
                yield seconds
                for one in driving:
                    one.cancel()
            reports = await asyncio.to_thread(admin.list_rounds, _NAME)
            seconds += [report.phase_seconds["aggregating"] for report in reports]


async def _work(worker: ScriptedWorker, update: Update) -> None:
    while True:
        task = await worker.task()
        if task.kind == pb.TASK_KIND_TRAIN:
            await Sender(worker, task, update).send()
