"""Workers with `rank = "auto"` train at a rank for which their device has room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from support.federation import Served, serving
from support.worker_federation import run_of
from support.worker_runs import classifier_spec, labelled_rows, write_jsonl

from client_worker import app
from client_worker.adaptation.attach import numbers_per_rank
from client_worker.adaptation.base_model import outline
from client_worker.adaptation.room import base_bytes
from client_worker.app import run_worker
from client_worker.config import WorkerConfig, WorkerRank
from client_worker.data.config import DataConfig
from fedlora.exit_codes import ExitCode
from fedlora.runs.phase import RunPhase

RUN = classifier_spec("random:bert")


def room_for(rank: int) -> int:
    """Bytes free where that rank, and no larger power of two, takes its quarter."""
    described = outline(RUN)
    base = base_bytes(described, RUN)
    return base + 4 * 16 * numbers_per_rank(described, RUN) * rank


def settings(tmp_path: Path, address: str, name: str, rank: WorkerRank) -> WorkerConfig:
    path = write_jsonl(tmp_path / f"{name}.jsonl", labelled_rows(12))
    return WorkerConfig(
        server=address,
        name=name,
        device="cpu",
        rank=rank,
        data=DataConfig(path=str(path)),
        threads=1,
    )


async def lived(tmp_path: Path, served: Served, name: str, rank: WorkerRank) -> int:
    """A worker's exit code; a run without it is stopped, so that nobody waits for it."""
    config = settings(tmp_path, served.address, name, rank)
    code = await asyncio.to_thread(run_worker, config)
    if code != ExitCode.OK:
        await served.aggregator.coordinator.stop_run("test", f"{name} has ended with {code}")
    return code


async def test_a_worker_trains_at_the_rank_that_fits_beside_others_at_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app, "free_bytes", lambda _: room_for(2))
    async with serving(tmp_path, run_of(RUN, "flora_na", num_rounds=1)) as served:
        actor = served.aggregator.coordinator.run("test")
        large = asyncio.create_task(lived(tmp_path, served, "large", WorkerRank.RUN))
        # Random weights come from torch's one generator: one worker of this process at a time.
        while not (actor.state.ready_workers or actor.state.phase.is_final):
            await actor.wait_for_change(None)
        codes = (await lived(tmp_path, served, "small", WorkerRank.AUTO), await large)
        state = actor.state
    assert codes == (ExitCode.OK, ExitCode.OK)
    assert state.phase is RunPhase.COMPLETED
    assert {name: worker.rank for name, worker in state.workers.items()} == {"small": 2, "large": 4}
    assert {name: update.rank for name, update in state.updates.items()} == {"small": 2, "large": 4}


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_a_workers_limit_is_what_fits_the_memory_of_its_gpu(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (room_for(rank), 1 << 40))
    config = settings(tmp_path, "unused:1", "w", WorkerRank.AUTO)
    limit = app._rank_limit(config, "cuda:GPU-11111111-aaaa")
    assert limit(run_of(RUN, "flora_na")) == rank


async def test_where_the_method_needs_one_rank_a_worker_without_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app, "free_bytes", lambda _: 0)
    async with serving(tmp_path, run_of(RUN, "fedit")) as served:
        assert await lived(tmp_path, served, "small", WorkerRank.AUTO) == ExitCode.REFUSED
