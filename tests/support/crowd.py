"""A crowd that sends updates to a server process: some honest, some slow, some that fall silent.

Every worker has a connection of its own. The honest ones do as `fedlora worker` does: they resume
where they were cut off and come back when the server says.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from support.federation import ScriptedWorker, random_adapter
from support.processes import ServerProcess
from support.runs import run_spec
from support.senders import Ended, Sender, Update

from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.rpc.channel import client_options

__all__ = ["Crowd", "Met", "gathered", "meet", "p99"]

_SLOW_BYTES_PER_SECOND = 1024
_WIDTH = 1024

_PAUSE_SECONDS = 1.0
"""between two uploads of an honest worker's lane"""


@dataclass(slots=True)
class Crowd:
    """A server and those who send to it."""

    server: ServerProcess
    senders: list[Sender]
    """each may be used once"""
    most_bytes: int = 0
    """of the server's private memory, as far as `watch` has seen"""

    def take(self, count: int) -> list[Sender]:
        """Some who have sent nothing yet."""
        taken, self.senders = self.senders[:count], self.senders[count:]
        if len(taken) < count:
            raise AssertionError(f"{count} senders are wanted, {len(taken)} are left")
        return taken

    async def honest(self, lanes: Sequence[Sequence[Sender]]) -> list[float]:
        """Each lane sends its updates one after the other; seconds of each, sorted."""

        async def one_by_one(lane: Sequence[Sender]) -> list[float]:
            seconds = []
            for sender in lane:
                seconds.append(await sender.send())
                await asyncio.sleep(_PAUSE_SECONDS)
            return seconds

        return sorted(itertools.chain(*await asyncio.gather(*map(one_by_one, lanes))))

    async def watch(self) -> None:
        """Looks at the server's memory until cancelled."""
        while True:
            self.most_bytes = max(self.most_bytes, self.server.rss_anon_bytes())
            await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Met:
    """What a crowd met with."""

    idle: list[float]
    """seconds of honest uploads before the others came, sorted"""
    honest: list[float]
    stalled: list[Ended]
    slow: list[Ended]
    grown_bytes: int
    """the server's private memory, by the others and the honest ones among them"""


async def meet(
    crowd: Crowd, *, stalled: int, slow: int, lanes: int, uploads: int, seconds: float
) -> Met:
    """Honest uploads alone, then among the others.

    Args:
        crowd: with as many senders as that takes.
        stalled, slow: how many others there are.
        lanes: honest ones at a time.
        uploads: of each lane, alone and again among the others.
        seconds: for how long the slow ones go on.
    """
    idle = await crowd.honest([crowd.take(uploads) for _ in range(lanes)])
    before = crowd.server.rss_anon_bytes()
    watching = asyncio.create_task(crowd.watch())
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        silent = [group.create_task(s.fall_silent()) for s in crowd.take(stalled)]
        crawling = [
            group.create_task(s.crawl(_SLOW_BYTES_PER_SECOND, until)) for s in crowd.take(slow)
        ]
        honest = group.create_task(crowd.honest([crowd.take(uploads) for _ in range(lanes)]))
    watching.cancel()
    return Met(
        idle=idle,
        honest=honest.result(),
        stalled=[task.result() for task in silent],
        slow=[ended for task in crawling for ended in task.result()],
        grown_bytes=crowd.most_bytes - before,
    )


def p99(seconds: Sequence[float]) -> float:
    """The 99th percentile of sorted seconds."""
    return seconds[int(0.99 * len(seconds))]


@asynccontextmanager
async def gathered(
    folder: Path, num_senders: int, *, rank: int, **settings: object
) -> AsyncIterator[Crowd]:
    """A server and as many workers with a task; one upload has 8 KiB per rank.

    One worker more keeps the round open for ever.
    """
    module = AdaptedModule(path="wide", in_features=_WIDTH, out_features=_WIDTH)
    layout = AdapterLayout(modules=(module,), saved_tensors=(), base_fingerprint="sha256:base")
    spec = run_spec(num_rounds=1, num_workers=num_senders + 1, rank=rank, deadline_seconds=36_000.0)
    # Nobody beats here.
    with ServerProcess(folder, spec, worker_timeout_seconds=36_000, **settings) as server:
        async with AsyncExitStack() as channels:
            workers = []
            for i in range(num_senders + 1):
                channel = await channels.enter_async_context(_channel(server.address))
                stub = federation_pb2_grpc.FederationServiceStub(channel)
                workers.append(ScriptedWorker(stub, f"worker-{i:04}"))
                await workers[-1].register()
                await workers[-1].confirm(layout)
            update = Update.of(random_adapter(rank, seed=0, layout=layout))
            await Sender(workers[0], await workers[0].task(), update).send()
            senders = [Sender(worker, await worker.task(), update) for worker in workers[1:]]
            yield Crowd(server, senders)


def _channel(address: str) -> grpc.aio.Channel:
    options = [*client_options(), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)
