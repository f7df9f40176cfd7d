"""Real federations for `../certificate.py`: rounds trained in one process, kept as files.

Everything but the network is real: the quickstart's model, data and settings, the workers'
`LocalTrainer`, aggregation over files. Each round leaves a folder

    WORK/<cell>/seed<s>/round<t>/
        worker-<u>.safetensors      what worker u would have sent, lora_B unscaled
        published.safetensors       what the federation's own method made of it
        round.json                  weights, losses, test accuracy, CPU seconds; written last

Round 0 holds only the first adapter. A round whose round.json is there is not trained again, so
methods can be measured on the same updates as often as one likes.

The quickstart's learning rate and its schedule over twelve rounds stay as they are: over the four
rounds measured here the rate falls by a quarter, not to a tenth.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.trainers import trainers_of
from torch import Tensor

from aggregator_service.aggregation import driver, registry
from client_worker.data.config import DataConfig
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.config import load_config
from fedlora.runs.method import Gauge, MethodSpec
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import EvaluationScope, EvaluationSplit
from fedlora.tensors.safetensors_io import decode, encode

__all__ = ["Cell", "Round", "train"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One federation, but for its seed."""

    alpha: float
    """of the Dirichlet partition: small is very unequal"""
    clients: int
    rank: int
    steps: int = 5
    """local steps of 32 examples in a round: 5 are near the quickstart's half an epoch where ten
    workers share its data"""
    method: str = "fedit"
    """what aggregates the federation's own rounds"""
    gauge: Gauge = Gauge.OWN
    """in which it publishes"""

    @property
    def spec(self) -> MethodSpec:
        """The method in its gauge."""
        return MethodSpec(name=self.method, gauge=self.gauge)

    @property
    def label(self) -> str:
        """The method, for people."""
        return self.method if self.gauge is Gauge.OWN else f"{self.method}, {self.gauge}"

    @property
    def name(self) -> str:
        """Of its folder."""
        method = self.method if self.gauge is Gauge.OWN else f"{self.method}-{self.gauge}"
        return (
            f"{method}-alpha{self.alpha:g}-clients{self.clients}-rank{self.rank}-steps{self.steps}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round left on disk."""

    number: int
    weights: tuple[float, ...]
    """training examples of each worker"""
    scaling: float
    """s of lora_B, as trained and as served"""
    train_losses: tuple[float, ...]
    cpu_seconds: float
    """of training and scoring"""
    accuracy: float | None
    """of the published adapter on the test set; None where it was not scored"""
    folder: Path
    before: Path
    """the adapter that the round began from"""

    @property
    def contributions(self) -> list[driver.Contribution]:
        """The updates, as the aggregator takes them."""
        return [
            driver.Contribution(
                worker=f"worker-{u:02d}",
                weight=weight,
                path=self.folder / f"worker-{u:02d}.safetensors",
                scaling=self.scaling,
            )
            for u, weight in enumerate(self.weights)
        ]

    @property
    def context(self) -> driver.RoundContext:
        """Where the round stood."""
        start = driver.StoredAdapter(path=self.before, scaling=self.scaling)
        return driver.RoundContext(round=self.number, start=start)


def train(cell: Cell, *, seed: int, rounds: int, work: Path, score: bool) -> list[Round]:
    """The rounds of one federation, trained where they are not there yet.

    Args:
        cell: which federation.
        seed: of the run and of the partition: other data on each worker, another first adapter.
        rounds: how many, from the first.
        work: folder that keeps them.
        score: also score each published adapter on the test set.
    """
    run, data = _configured(cell, seed)
    folder = work / cell.name / f"seed{seed}"
    workers: list[LocalTrainer] = []
    for number in range(1, rounds + 1):
        if not (folder / f"round{number}" / "round.json").exists():
            workers = workers or trainers_of(run, data)
            _train_round(run, workers, folder, number, score=score)
    return [_read(folder, number) for number in range(1, rounds + 1)]


def _configured(cell: Cell, seed: int) -> tuple[RunSpec, DataConfig]:
    overrides = [
        f"training.local_steps={cell.steps}",
        f"data.partition.num_slots={cell.clients}",
        f"data.partition.dirichlet_alpha={cell.alpha}",
        f"adapter.r={cell.rank}",
    ]
    config = load_config(
        ROOT / "examples/quickstart.toml", services={"data": DataConfig}, overrides=overrides
    )
    run = config.need_run()
    if run.partition is None:
        raise SystemExit("examples/quickstart.toml has no [data.partition]")
    partition = dataclasses.replace(run.partition, seed=seed)
    run = dataclasses.replace(run, seed=seed, partition=partition, method=cell.spec)
    return run, config.build("data", DataConfig)


def _train_round(
    run: RunSpec, workers: list[LocalTrainer], folder: Path, number: int, *, score: bool
) -> None:
    rank, scaling = run.adapter.r, run.adapter.scaling(run.adapter.r)
    here, before = folder / f"round{number}", folder / f"round{number - 1}"
    here.mkdir(parents=True, exist_ok=True)
    if number == 1:
        before.mkdir(exist_ok=True)
        _write(before / "published.safetensors", workers[0].adapter())
    manifest = workers[0].layout.manifest(rank, run.wire_dtype)
    given = decode(before / "published.safetensors", manifest)
    began = time.process_time()
    weights, losses = [], []
    for slot, worker in enumerate(workers):
        worker.load_adapter(given)
        seed = derive_seed(run.seed, number, "train", slot)
        outcome = worker.train(RoundWork(round=number, seed=seed))
        weights.append(outcome.num_examples)
        losses.append(outcome.metrics["train_loss"])
        _write(here / f"worker-{slot:02d}.safetensors", worker.adapter())
    record = Round(
        number=number,
        weights=tuple(weights),
        scaling=scaling,
        train_losses=tuple(losses),
        cpu_seconds=0.0,
        accuracy=None,
        folder=here,
        before=before / "published.safetensors",
    )
    driver.aggregate(
        record.contributions,
        registry.create_recipe(run.method),
        output=here / "published.safetensors",
        context=record.context,
        rank=rank,
        output_scaling=run.adapter.scaling,
        dtype=run.wire_dtype,
        seed=derive_seed(run.seed, number, "aggregate"),
    )
    accuracy = _accuracy(workers[0], decode(here / "published.safetensors", manifest), score)
    facts = {
        "weights": record.weights,
        "scaling": scaling,
        "train_losses": record.train_losses,
        "cpu_seconds": time.process_time() - began,
        "accuracy": accuracy,
    }
    (here / "round.json").write_text(json.dumps(facts))
    print(f"{here}: {facts}", flush=True)


def _accuracy(worker: LocalTrainer, adapter: Mapping[str, Tensor], score: bool) -> float | None:
    if not score:
        return None
    worker.load_adapter(adapter)
    scores = worker.evaluate(EvaluationScope.GLOBAL, round=1)
    return next(s for s in scores if s.split is EvaluationSplit.TEST).metrics["accuracy"]


def _write(path: Path, adapter: Mapping[str, Tensor]) -> None:
    path.write_bytes(b"".join(chunk for _, chunk in encode(adapter).chunks(0, 2**20)))


def _read(folder: Path, number: int) -> Round:
    here = folder / f"round{number}"
    facts = json.loads((here / "round.json").read_text())
    return Round(
        number=number,
        weights=tuple(facts["weights"]),
        scaling=facts["scaling"],
        train_losses=tuple(facts["train_losses"]),
        cpu_seconds=facts["cpu_seconds"],
        accuracy=facts["accuracy"],
        folder=here,
        before=folder / f"round{number - 1}" / "published.safetensors",
    )
