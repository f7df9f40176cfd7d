"""A whole federation over bad links: the real server, real workers, one proxy for each of them.

The workers run in threads of this process; the adapters are large enough for faults to fall into
the middle of uploads and downloads.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from support.fault_log import record
from support.federation import serving
from support.noted_worker import Submission, noted_worker, stored_submissions
from support.runs import run_spec
from support.tcp_proxy import FaultProxy
from support.worker_harness import Worker

from aggregator_service.run_actor import RunActor
from fedlora.exit_codes import ExitCode
from fedlora.runs.report import WorkerState
from fedlora.runs.tasks import Acknowledgement

__all__ = ["WORKER_TIMEOUT_SECONDS", "Fault", "Outcome", "Scene", "run_federation"]

WORKER_TIMEOUT_SECONDS = 1.0

_RANK = 128
"""makes 32 KiB of the tiny trainer's adapter: it arrives even where no window update comes back"""

_LONGEST_SECONDS = 150.0


@dataclass
class Scene:
    """What a fault may touch and look at while the federation runs."""

    links: list[FaultProxy]
    """one for each worker"""
    actor: RunActor
    rng: random.Random
    go_on: threading.Event = field(default_factory=threading.Event)
    """until it is set, every other worker trains"""

    def wait(self, _step: int) -> None:
        """What holds the training of every other worker up."""
        self.go_on.wait(_LONGEST_SECONDS)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once the run is so."""
        async with asyncio.timeout(_LONGEST_SECONDS):
            while not condition():
                await self.actor.wait_for_change(None)

    async def until_half_have_submitted(self) -> None:
        """The others still train, until `go_on` is set."""
        await self.until(
            lambda: self.actor.state.round == 1 and len(self.actor.state.updates) == self._half
        )

    async def until_all_are_lost(self) -> None:
        """The server has heard of nobody for its timeout."""
        await self.until(
            lambda: all(w.state is WorkerState.LOST for w in self.actor.state.workers.values())
        )

    @property
    def _half(self) -> int:
        return (len(self.links) + 1) // 2


Fault = Callable[[Scene], Awaitable[None]]
"""begins with the federation; what it has not healed when it returns stays"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a federation came to."""

    digest: str
    """of the final adapter"""
    acknowledged: list[Submission]
    """as the workers were told"""
    num_replayed: int
    """acknowledgements of what counted already"""
    stored: list[Submission]
    """as the server counts them"""
    exit_codes: list[ExitCode]
    links: list[FaultProxy]


async def run_federation(
    folder: Path, fault: Fault, *, seed: int = 0, num_workers: int = 10, num_rounds: int = 2
) -> Outcome:
    """Runs to the end, faults and all; every stored update has been read and has its digest."""
    spec = run_spec(num_rounds=num_rounds, num_workers=num_workers, rank=_RANK)
    acknowledged: list[tuple[Submission, Acknowledgement]] = []
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            serving(
                folder,
                spec,
                heartbeat_interval_seconds=WORKER_TIMEOUT_SECONDS / 4,
                worker_timeout_seconds=WORKER_TIMEOUT_SECONDS,
                idle_timeout_seconds=1.0,
            )
        )
        links = [
            await stack.enter_async_context(FaultProxy(served.address, seed=seed + i))
            for i in range(num_workers)
        ]
        actor = served.aggregator.coordinator.run(spec.name)
        scene = Scene(links, actor, random.Random(seed))
        workers = [
            stack.enter_context(
                noted_worker(
                    link.address,
                    folder / f"w-{i:03}",
                    f"w-{i:03}",
                    acknowledged,
                    on_step=scene.wait if i % 2 else lambda _: None,
                )
            )
            for i, link in enumerate(links)
        ]
        exit_codes = await _work(workers, scene, fault)
        newest = await served.aggregator.coordinator.adapter(actor, None)
        told = sorted(submission for submission, _ in acknowledged)
        stored = await served.aggregator.coordinator.store.call(
            lambda s: stored_submissions(s, served.aggregator.coordinator.blobs, num_rounds)
        )
        record(
            faults=len(links),
            acknowledged=len(told),
            lost=len({*told} - {*stored}),
            twice=len(stored) - len({*stored}),
        )
        return Outcome(
            digest=newest.digest,
            acknowledged=told,
            num_replayed=sum(acknowledgement.replayed for _, acknowledgement in acknowledged),
            stored=stored,
            exit_codes=exit_codes,
            links=links,
        )


async def _work(workers: list[Worker], scene: Scene, fault: Fault) -> list[ExitCode]:
    """Runs the workers in threads, with the fault beside them, and ends them whatever happens."""
    # Threads of their own: the server uses the event loop's.
    threads = ThreadPoolExecutor(len(workers))
    loop = asyncio.get_running_loop()
    ends = [loop.run_in_executor(threads, w.runner.run) for w in workers]
    try:
        async with asyncio.timeout(_LONGEST_SECONDS):
            await fault(scene)
            scene.go_on.set()
            return list(await asyncio.gather(*ends))
    finally:
        scene.go_on.set()
        for link in scene.links:
            link.heal()
        for each in workers:
            each.stop.request()
        await asyncio.gather(*ends, return_exceptions=True)
        threads.shutdown()
