"""A worker process that is killed and started again: one update counts, and nothing is lost.

One run is FedSA-LoRA's: A is sent, B is the worker's own. The trainer moves A by what B is, so the
final adapter is bit-equal to that of an undisturbed run only if no B was lost or trained twice. The
other is SCAFFOLD's, whose c_u the worker keeps and whose sum the server does.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.federation import serving
from support.processes import WorkerProcess, worker_process
from support.runs import run_spec
from support.tiny_trainer import CoupledTrainer
from support.worker_harness import worker
from torch import Tensor

from aggregator_service.transport import server as transport_server
from aggregator_service.transport.federation_servicer import FederationServicer
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.spec import RunSpec

SPECS = {
    "fedsa_lora": run_spec(method="fedsa_lora", num_rounds=3, num_workers=2),
    "scaffold": replace(
        run_spec(num_rounds=3, num_workers=2),
        method=MethodSpec(name="fedit", weighting=RuleSpec(name="uniform")),
        plugins=(RuleSpec(name="scaffold"),),
    ),
}
ROUND = 2
"""the one that is disturbed: there is a private part before it, and a round after it"""
CHUNK_BYTES = 64
CHUNKS = 4
"""of the update that come through before the worker is killed in mid-upload"""


@dataclass
class Moment:
    """Holds the killed worker's calls at one place of the disturbed round, until it is killed."""

    place: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    uploads: list[Any] = field(default_factory=list)
    """headers of the worker's updates of that round, in order of arrival"""

    async def hold(self, place: str, task_id: str) -> None:
        if place == self.place and task_id.endswith(f"/{ROUND}/train/w"):
            self.reached.set()
            await self.over.wait()

    def servicer(self) -> type[FederationServicer]:
        moment = self

        class Held(FederationServicer):
            async def ReportMetrics(self, request: Any, context: Any) -> Any:
                await moment.hold("mid-training", request.progress.task_id)
                return await super().ReportMetrics(request, context)

            async def GetUploadStatus(self, request: Any, context: Any) -> Any:
                task_id = request.idempotency_key.partition(".")[0]
                await moment.hold("before the upload", task_id)
                return await super().GetUploadStatus(request, context)

            async def PushUpdate(self, request: Any, context: Any) -> Any:
                task_id = ""

                async def watched() -> AsyncIterator[Any]:
                    nonlocal task_id
                    chunks = 0
                    async for message in request:
                        if isinstance(message, pb.PushUpdateRequest):
                            task_id = message.header.task_id
                            if task_id.endswith(f"/{ROUND}/train/w"):
                                moment.uploads.append(message.header)
                        elif (chunks := chunks + 1) > CHUNKS:
                            await moment.hold("mid-upload", task_id)
                        yield message

                response = await super().PushUpdate(watched(), context)
                await moment.hold("before the answer", task_id)
                return response

        return Held


async def ended(running: WorkerProcess) -> list[dict[str, Any]]:
    """The log of a process that has come to its end."""
    log = await asyncio.to_thread(running.log_at_its_end)
    return [json.loads(line) for line in log.splitlines()]


@dataclass
class Finished:
    """What a run came to."""

    final: dict[str, Tensor]
    counted: list[tuple[int, str]]
    """round and worker of every update that counted"""
    again: list[dict[str, Any]] = field(default_factory=list)
    """log of the process that took the killed one's place"""


async def run(tmp_path: Path, spec: RunSpec, moment: Moment | None) -> Finished:
    """A run with an undisturbed worker, and one that is killed at a moment, if there is one."""
    async with asyncio.timeout(90), serving(tmp_path, spec) as served:
        coordinator = served.aggregator.coordinator
        workers = served.aggregator.workers
        workers.limits = replace(workers.limits, max_chunk_bytes=CHUNK_BYTES)
        finished = Finished({}, [])
        with ExitStack() as stack:
            names = ["other"] if moment else ["other", "w"]
            workers = [
                stack.enter_context(
                    worker(served.address, tmp_path / name, name=name, create=CoupledTrainer)
                )
                for name in names
            ]
            threads = [asyncio.create_task(asyncio.to_thread(w.runner.run)) for w in workers]
            try:
                if moment is not None:
                    finished.again = await killed_once(served.address, tmp_path / "cache", moment)
            except BaseException:
                for each in workers:
                    each.stop.request()
                await asyncio.gather(*threads)
                raise
            assert await asyncio.gather(*threads) == [ExitCode.OK] * len(names)
        await served.aggregator.wait_until_settled()
        actor = coordinator.run("test")
        async for report in coordinator.reports(actor):
            finished.counted += [(report.round, update.worker) for update in report.updates]
        record = await coordinator.adapter(actor, None)
        finished.final = load_file(coordinator.blobs.path(record.digest))
    return finished


async def killed_once(address: str, cache: Path, moment: Moment) -> list[dict[str, Any]]:
    mode = f"train:{ROUND}" if moment.place == "mid-training" else "work"
    with worker_process(cache / "killed", address, mode, "--cache-dir", cache) as running:
        log = asyncio.create_task(ended(running))
        reached = asyncio.create_task(moment.reached.wait())
        await asyncio.wait({log, reached}, return_when=asyncio.FIRST_COMPLETED)
        assert not log.done(), log.result()
        running.process.send_signal(signal.SIGKILL)
        await log
    moment.over.set()
    with worker_process(cache / "again", address, "work", "--cache-dir", cache) as running:
        log = await ended(running)
    assert running.process.poll() == ExitCode.OK, log
    return log


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest) -> RunSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, spec: RunSpec) -> Finished:
    return asyncio.run(run(tmp_path_factory.mktemp("undisturbed"), spec, None))


@pytest.mark.parametrize(
    "place", ["mid-training", "before the upload", "mid-upload", "before the answer"]
)
async def test_a_worker_killed_and_started_again_changes_nothing_of_the_run(
    tmp_path: Path,
    spec: RunSpec,
    undisturbed: Finished,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
):
    moment = Moment(place)
    monkeypatch.setattr(transport_server, "FederationServicer", moment.servicer())
    finished = await run(tmp_path, spec, moment)

    once = {(round, name): 1 for round in (1, 2, 3) for name in ("other", "w")}
    assert Counter(finished.counted) == once
    assert finished.final.keys() == undisturbed.final.keys()
    for name, tensor in finished.final.items():
        assert torch.equal(tensor, undisturbed.final[name]), name

    # What was trained is not trained again, and what has arrived is not sent again.
    assert rounds_of(finished.again, "trained") == ([2, 3] if place == "mid-training" else [3])
    assert rounds_of(finished.again, "update_found") == (
        [2] if place in ("before the upload", "mid-upload") else []
    )
    assert rounds_of(finished.again, "update_committed") == (
        [3] if place == "before the answer" else [2, 3]
    )
    assert len({header.idempotency_key for header in moment.uploads}) == 1
    offsets = [header.start_offset for header in moment.uploads]
    assert offsets == ([0, CHUNKS * CHUNK_BYTES] if place == "mid-upload" else [0])


def rounds_of(log: list[dict[str, Any]], event: str) -> list[int]:
    return [line["round"] for line in log if line["event"] == event]
