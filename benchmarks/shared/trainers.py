"""The workers of a configuration with partitioned data, in one process and without a server."""

from __future__ import annotations

from client_worker.data.config import DataConfig
from client_worker.training.trainer import LocalTrainer
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import DataSlot

__all__ = ["trainers_of"]


def trainers_of(run: RunSpec, data: DataConfig) -> list[LocalTrainer]:
    """One for each part of the data, with the same first adapter."""
    partition = run.partition
    if partition is None:
        raise SystemExit("the configuration needs a section [data.partition]")
    return [
        LocalTrainer.create(
            run,
            rank=run.adapter.r,
            data=data,
            slot=DataSlot(index=slot, partition=partition),
            device="cpu",
            threads=1,
        )
        for slot in range(partition.num_slots)
    ]
