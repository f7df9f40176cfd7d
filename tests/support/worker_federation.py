"""Federations of real workers, each on a tiny model, over gRPC in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from support.federation import Served, serving
from support.worker_harness import worker
from support.worker_runs import labelled_rows, trainer_for, worker_run, write_jsonl
from torch import Tensor

from aggregator_service.aggregation.registry import create_recipe
from client_worker.data.config import DataConfig
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.spec import AdapterSpec
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import run_pb2
from fedlora.runs.method import MethodSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Registration, Role

__all__ = ["Finished", "federate", "of_part", "parts_in", "run_of", "same", "stored", "trainer_in"]


@dataclass
class Finished:
    """A run of real workers that has come to its end."""

    spec: RunSpec
    plans: tuple[RoundPlan, ...]
    versions: list[dict[str, Tensor]]
    trainers: dict[str, LocalTrainer]
    final: Path
    """the last version as exported for PEFT"""
    lived: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)
    """by worker: what its model held, in full precision, at each evaluation"""
    reports: list[run_pb2.RoundReport] = field(default_factory=list)


def parts_in(tensors: Mapping[str, Tensor]) -> set[Part | None]:
    return {parse_key(name).part for name in tensors}


def of_part(tensors: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if parse_key(name).part is part}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


async def stored(served: Served, version: int) -> dict[str, Tensor]:
    """A version whole, as the server keeps it."""
    coordinator = served.aggregator.coordinator
    record = await coordinator.adapter(coordinator.run("test"), version)
    return load_file(coordinator.blobs.path(record.digest))


def run_of(
    adapter: AdapterSpec,
    method: str,
    *,
    num_rounds: int = 2,
    num_workers: int = 2,
    options: Mapping[str, Any] | None = None,
    **training: Any,
) -> RunSpec:
    """A run of real workers."""
    return replace(
        worker_run(adapter, **training),
        method=MethodSpec(name=method, options=options or {}),
        rounds=RoundRules(
            num_rounds=num_rounds,
            min_workers=num_workers,
            quorum=num_workers,
            deadline_seconds=60.0,
        ),
    )


def trainer_in(
    folder: Path, name: str, rows: Sequence[Mapping[str, object]], *, device: str = "cpu"
) -> Callable[[Registration], LocalTrainer]:
    """What makes the trainer of a worker with these rows."""
    path = write_jsonl(folder / f"{name}.jsonl", rows)
    data = DataConfig(path=str(path), split_column="split", held_out_fraction=0.2)
    return lambda registration: trainer_for(
        registration.run, data, rank=registration.rank, device=device
    )


async def federate(
    tmp_path: Path,
    spec: RunSpec,
    *,
    max_ranks: Mapping[str, int] | None = None,
    server_data: bool = False,
    cache_dir: Path | None = None,
    rows: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    device: str = "cpu",
) -> Finished:
    """Runs two workers, w-0 and w-1, to the end.

    Args:
        tmp_path: for everything.
        spec: the run.
        max_ranks: of the workers that have one.
        server_data: whether a third worker, "server", holds data of the server's.
        cache_dir: where workers keep what they keep; nowhere if not given.
        rows: each worker's; labelled ones if not given.
        device: that both train on.
    """
    trainers: dict[str, LocalTrainer] = {}
    lived: dict[str, list[dict[str, Tensor]]] = {}
    loading = threading.Lock()

    def create(name: str, count: int) -> Callable[[Registration], LocalTrainer]:
        own = rows[name] if rows else labelled_rows(count, test=3)
        make = trainer_in(tmp_path, name, own, device=device)

        def made(registration: Registration) -> LocalTrainer:
            # A model's head comes from torch's one generator, which these workers share.
            with loading:
                trainer = trainers[name] = make(registration)
            evaluate = trainer.evaluate

            def noted(*arguments: Any, **options: Any) -> Any:
                lived.setdefault(name, []).append(trainer.trained_values())
                return evaluate(*arguments, **options)

            trainer.evaluate = noted  # type: ignore[method-assign]
            return trainer

        return made

    async with (
        asyncio.timeout(120),
        serving(tmp_path, spec, export_dir=tmp_path / "runs") as served,
    ):
        with ExitStack() as stack:

            def started(name: str, count: int, **settings: Any) -> asyncio.Task[ExitCode]:
                made = worker(
                    served.address,
                    tmp_path / name,
                    name=name,
                    create=create(name, count),
                    max_rank=(max_ranks or {}).get(name, 0),
                    cache_dir=cache_dir,
                    **settings,
                )
                return asyncio.create_task(asyncio.to_thread(stack.enter_context(made).runner.run))

            running = []
            if server_data:
                # There before the first round ends, which would go on without it.
                running.append(started("server", 20, role=Role.SERVER_DATA))
                actor = served.aggregator.coordinator.run("test")
                while not actor.state.ready_refiners:
                    await actor.wait_for_change(None)
            running += [started("w-0", 17), started("w-1", 23)]
            codes = await asyncio.gather(*running)
        assert codes == [ExitCode.OK] * len(running)
        last = served.aggregator.coordinator.run("test").state.version
        assert last is not None
        versions = [await stored(served, version) for version in range(last + 1)]
        await served.aggregator.wait_until_settled()
        reports = await served.rounds("test")
    plans = create_recipe(spec.method).plans(spec.adapter.kind)
    final = tmp_path / "runs" / "test" / "final"
    return Finished(spec, plans, versions, trainers, final, lived, reports)
